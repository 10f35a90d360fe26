//! Pools of every kind, mostly so small that they run out.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem;
use std::time::Duration;

use arbitrary::Arbitrary;
use ropewalk::{Backing, Pool, PoolStats};

pub const PAGE: u64 = 4096;

/// Capacities in pages: one and few, around a word of the bitmaps, and more than one rope holds.
const CAPACITIES: [u64; 12] = [1, 2, 3, 4, 5, 8, 13, 31, 32, 33, 63, 64];

/// Idle pages that a pool may keep.
const RETAINED: [u64; 4] = [0, 1, 5, 16];

thread_local! {
    /// Those of earlier runs, by their place in the world: to make one costs as much as a run.
    static POOLS: RefCell<HashMap<(usize, Kind), Pool>> = RefCell::default();
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    capacity: u8,
    retain: Option<u8>,
    no_decay: bool,
    zero: bool,
    anonymous: bool,
}

impl Kind {
    /// Most idle bytes that stay resident.
    pub fn retained(&self) -> u64 {
        self.retain.map_or(u64::MAX, |which| RETAINED[usize::from(which) % RETAINED.len()] * PAGE)
    }

    /// An empty pool of this kind. Of earlier runs it has the size of the first read, and no page that is resident.
    pub fn pool(self, place: usize) -> Pool {
        // Few kinds, so that most pools exist.
        let kind = Kind {
            capacity: self.capacity % CAPACITIES.len() as u8,
            retain: self.retain.map(|which| which % RETAINED.len() as u8),
            ..self
        };
        POOLS.with_borrow_mut(|pools| pools.entry((place, kind)).or_insert_with(|| kind.create()).clone())
    }

    fn create(self) -> Pool {
        let options = Pool::options()
            .small_limits()
            .capacity(CAPACITIES[usize::from(self.capacity)] * PAGE)
            .retain(self.retained())
            .decay(Duration::from_secs(if self.no_decay { 0 } else { 3600 }))
            .zero_on_release(self.zero);
        if !self.anonymous {
            return options.create().unwrap();
        }
        let pool = without_descriptors(|| options.create().unwrap());
        assert_eq!((pool.stats().backing, pool.stats().reduced), (Backing::Anonymous, true));
        pool
    }
}

/// What the pool says of itself, if that fits together.
pub fn stats(pool: &Pool) -> PoolStats {
    let stats = pool.stats();
    assert!(stats.in_use + stats.reserved <= stats.capacity, "{stats:?}");
    assert!(stats.warm <= stats.resident && stats.resident <= stats.in_use + stats.warm, "{stats:?}");
    assert!(stats.in_use <= stats.peak && stats.peak <= stats.capacity, "{stats:?}");
    assert!(stats.resident <= stats.peak_resident && !stats.keeps_memory, "{stats:?}");
    stats
}

/// Runs `body` while this process may open no further file.
fn without_descriptors<T>(body: impl FnOnce() -> T) -> T {
    let before = limit_descriptors(0);
    let result = body();
    limit_descriptors(before);
    result
}

/// setrlimit(2), `RLIMIT_NOFILE`; returns what the soft limit was.
fn limit_descriptors(soft: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }, 0);
    let before = mem::replace(&mut limit.rlim_cur, soft);
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    before
}
