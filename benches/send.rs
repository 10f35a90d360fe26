//! Sending 16 MiB in segments of different size: the CPU time of the sender.

use criterion::{Criterion, criterion_group, criterion_main};
use ropewalk_bench::brief;
use ropewalk_bench::transmit::{segments, senders};

const TOTAL: usize = 16 << 20;

fn send(criterion: &mut Criterion) {
    for segment in [1000, 16 << 10, 256 << 10] {
        let segments = segments(TOTAL, segment);
        brief::contenders(criterion, "send", segment, TOTAL, senders(&segments));
    }
}

criterion_group! { name = benches; config = brief::config(); targets = send }
criterion_main!(benches);
