//! Receiving a payload and making it contiguous, warm: the CPU time of the receiver.

use criterion::{Criterion, criterion_group, criterion_main};
use ropewalk_bench::accumulate::{VARIANTS, receiving};
use ropewalk_bench::brief;
use ropewalk_bench::wire::Peer;

fn recv(criterion: &mut Criterion) {
    let peer = Peer::start();
    for size in [64, 64 << 10, 16 << 20] {
        let contenders = VARIANTS.iter().map(|(name, _)| receiving(name, &peer, size)).collect();
        brief::contenders(criterion, "recv", size, size, contenders);
    }
}

criterion_group! { name = benches; config = brief::config(); targets = recv }
criterion_main!(benches);
