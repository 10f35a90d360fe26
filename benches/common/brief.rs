//! How criterion is used here: briefly, and with the CPU time of this thread where others take part.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};

use crate::measure::Contender;
use crate::operation::Operation;
use crate::report;

/// Few samples: what is measured with care is measured in turn, in `ratios`.
#[must_use]
pub fn config() -> Criterion {
    let (warm, measure) = (Duration::from_millis(100), Duration::from_millis(400));
    Criterion::default().sample_size(10).warm_up_time(warm).measurement_time(measure).without_plots()
}

/// A group for each thing that is done.
pub fn operations(criterion: &mut Criterion, operations: Vec<Operation>) {
    for Operation { what, variant, mut run } in operations {
        let id = format!("{what}/{variant}");
        criterion.bench_function(&id, |bencher| {
            bencher.iter_custom(|times| {
                let start = Instant::now();
                run(times);
                start.elapsed()
            });
        });
    }
}

/// One group, of contenders that time themselves; `size` is the payload or the segment.
pub fn contenders(
    criterion: &mut Criterion,
    what: &str,
    size: usize,
    bytes: usize,
    contenders: Vec<Contender<'_>>,
) {
    let mut group = criterion.benchmark_group(format!("{what}, {}", report::size(size as u64)));
    group.throughput(Throughput::Bytes(bytes as u64));
    for (name, mut round) in contenders {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| Duration::from_secs_f64((0..times).map(|_| round()).sum()));
        });
    }
    group.finish();
}
