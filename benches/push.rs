//! Building and cutting: append, prepend, split, advance, slice, clone, seek.

use criterion::{Criterion, criterion_group, criterion_main};
use ropewalk_bench::{brief, operation};

fn push(criterion: &mut Criterion) {
    brief::operations(criterion, operation::push());
}

criterion_group! { name = benches; config = brief::config(); targets = push }
criterion_main!(benches);
