//! Messages of a length and so many bytes, built with `BufMut` and parsed with `Buf`, 100 at a time.

use criterion::{Criterion, criterion_group, criterion_main};
use ropewalk_bench::{brief, operation};

fn codec(criterion: &mut Criterion) {
    brief::operations(criterion, operation::codec());
}

criterion_group! { name = benches; config = brief::config(); targets = codec }
criterion_main!(benches);
