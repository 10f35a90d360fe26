//! Making contiguous what lies in pieces.

use criterion::{Criterion, criterion_group, criterion_main};
use ropewalk_bench::brief;
use ropewalk_bench::contiguous;

fn finalize(criterion: &mut Criterion) {
    for (size, extent) in
        [(64 << 10, 4 << 10), (1 << 20, 64 << 10), (16 << 20, 256 << 10), (64 << 20, 2 << 20)]
    {
        brief::contenders(criterion, "finalize", size, size, contiguous::contenders(size, extent));
    }
}

criterion_group! { name = benches; config = brief::config(); targets = finalize }
criterion_main!(benches);
