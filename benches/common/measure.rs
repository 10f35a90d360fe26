//! The CPU time of this thread, and ratios of it measured in turn.
//!
//! Variants alternate round by round inside one process, so that a machine that is slower for a while
//! is slower for all of them. Each round gives the ratio to the first variant; medians are reported.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// CPU time that this thread has used, user and system.
///
/// # Panics
///
/// Never: the clock exists.
#[must_use]
pub fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock of every Linux").into()
}

/// CPU time that `work` takes, in seconds.
pub fn timed<T>(work: impl FnOnce() -> T) -> f64 {
    let start = cpu_time();
    let result = work();
    let time = cpu_time() - start;
    drop(result);
    time.as_secs_f64()
}

/// The value in the middle; of an even number of them the mean of the two.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(sorted[half - 1], sorted[half]),
        _ => sorted[half],
    }
}

/// A variant that is measured: its name, and one round of it, which returns seconds.
pub type Contender<'a> = (String, Box<dyn FnMut() -> f64 + 'a>);

/// What a contender took.
#[derive(Clone, Debug)]
pub struct Timing {
    pub name: String,
    /// Median of seconds.
    pub seconds: f64,
    /// Median over the rounds of its time divided by the first contender's.
    pub ratio: f64,
    /// The quartiles of those.
    pub quartiles: (f64, f64),
}

/// Rounds that do not count: the first payload fills a pool, the second maps what the first has filled.
const BEFORE: usize = 2;

/// Runs all in turn: two rounds that do not count, then `rounds`.
pub fn in_turn(contenders: &mut [Contender<'_>], rounds: usize) -> Vec<Timing> {
    let mut times = vec![Vec::new(); contenders.len()];
    for round in 0..BEFORE + rounds {
        // There and back, so that no contender always comes after the same one.
        let forwards = 0..contenders.len();
        let order: Vec<usize> = if round % 2 == 0 { forwards.collect() } else { forwards.rev().collect() };
        for at in order {
            let seconds = contenders[at].1();
            if round >= BEFORE {
                times[at].push(seconds);
            }
        }
    }
    contenders.iter().zip(&times).map(|((name, _), own)| timing(name, own, &times[0])).collect()
}

fn timing(name: &str, own: &[f64], reference: &[f64]) -> Timing {
    let mut ratios: Vec<f64> = own.iter().zip(reference).map(|(own, first)| own / first).collect();
    ratios.sort_by(f64::total_cmp);
    let quartiles = (ratios[ratios.len() / 4], ratios[(ratios.len() * 3 / 4).min(ratios.len() - 1)]);
    Timing { name: name.to_owned(), seconds: median(own), ratio: median(&ratios), quartiles }
}
