//! Pages without memory: how they are filled, and how often that may be.

use std::cell::RefCell;
use std::hint::black_box;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ropewalk::{Pool, Rope};
use ropewalk_bench::contiguous::touch;
use ropewalk_bench::measure::timed;
use ropewalk_bench::wire;

use super::memory::Memfd;
use super::{Tables, Trial, Unit, doubling};

/// A way to fill a memfd with a payload in steps of a size.
type Fill = fn(&mut Memfd, payload: &[u8], step: usize) -> io::Result<()>;

/// How much to commit at once, and what a page fault for each page costs instead. All that was filled is then read.
pub(super) fn commit(tables: &mut Tables) -> io::Result<()> {
    const SIZE: usize = 16 << 20;
    const WAYS: [(&str, Fill); 2] = [("MADV_POPULATE_WRITE", populated), ("faults", faulting)];
    let (memfd, pattern) = (RefCell::new(Memfd::new(SIZE)?), wire::pattern());
    let mut trials = Vec::new();
    for step in doubling(64 << 10, 4 << 20) {
        for (way, fill) in WAYS {
            let (memfd, pattern) = (&memfd, &pattern);
            trials.push(Trial::new(step, way, move || {
                let mut memfd = memfd.borrow_mut();
                memfd.punch().expect("a hole");
                timed(|| fill(&mut memfd, pattern, step).map(|()| touch(memfd.bytes())).expect("memory"))
            }));
        }
    }
    tables.weigh("commit", Unit::per_mib(SIZE), 15, trials);
    Ok(())
}

fn populated(memfd: &mut Memfd, payload: &[u8], step: usize) -> io::Result<()> {
    (0..memfd.bytes().len()).step_by(step).try_for_each(|at| {
        memfd.populate(at, step)?;
        copy(payload, &mut memfd.bytes()[at..at + step]);
        Ok(())
    })
}

fn faulting(memfd: &mut Memfd, payload: &[u8], step: usize) -> io::Result<()> {
    memfd.bytes().chunks_mut(step).for_each(|chunk| copy(payload, chunk));
    Ok(())
}

/// Fills `to` with as much of `payload` as it takes, again and again.
fn copy(payload: &[u8], to: &mut [u8]) {
    to.chunks_mut(payload.len()).for_each(|to| to.copy_from_slice(&payload[..to.len()]));
}

/// Bytes that are committed at once where something else is varied.
const COMMIT: usize = 1 << 20;

/// The part of a core that giving back may take.
const SHARE: f64 = 0.01;

/// What memory costs that is given back and taken again, beside what stays.
pub(super) fn decay(tables: &mut Tables) -> io::Result<()> {
    for size in [1 << 20, 4 << 20, 16 << 20, 64 << 20] {
        let (mut kept, mut given) = (Memfd::warm(size)?, Memfd::warm(size)?);
        let pattern = &wire::pattern();
        let keep = move || timed(|| copy(pattern, kept.bytes()));
        let give = move || {
            timed(|| {
                given.punch().and_then(|()| populated(&mut given, pattern, COMMIT)).expect("memory");
                touch(given.bytes());
            })
        };
        let trials =
            vec![Trial::new(size, "kept, filled", keep), Trial::new(size, "given back, filled", give)];
        let seconds = tables.weigh("decay", Unit::per_mib(size), 15, trials);
        let between = (seconds[1] - seconds[0]) / SHARE;
        tables.figure("decay", super::size(size as u64), "once in, for 1 % of a core", (between, "s"));
    }
    once(tables)
}

/// What is done once for pages or for a message: to ask the clock, to lock, to have a handle (what a rope in a pool
/// takes beyond one that is in none) and a block of memory.
fn once(tables: &mut Tables) -> io::Result<()> {
    const TIMES: u32 = 10_000;
    let lock = Mutex::new(0_u32);
    let locked = || *lock.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    let asked = || {
        black_box(Instant::now());
    };
    let pool = Pool::new()?;
    let handle = || drop(black_box(Rope::in_pool(&pool)));
    let rope = || drop(black_box(Rope::new()));
    let block = || drop(black_box(Vec::<u8>::with_capacity(64)));
    let trials = vec![
        often("lock, unlock", TIMES, locked),
        often("Instant::now", TIMES, asked),
        often("Rope::in_pool, drop", TIMES, handle),
        often("Rope::new, drop", TIMES, rope),
        often("64 B allocated, freed", TIMES, block),
    ];
    tables.weigh("once", Unit("ns", 1e9 / f64::from(TIMES)), 15, trials);
    Ok(())
}

fn often<'a>(way: &'static str, times: u32, work: impl Fn() + 'a) -> Trial<'a> {
    let round = move || timed(|| (0..times).for_each(|_| work()));
    Trial { at: "each".to_owned(), way, round: Box::new(round) }
}
