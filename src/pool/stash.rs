//! What each lane has at hand: one run of free pages, which its threads take from and give back to without
//! the lock. `loom/` checks it.
//!
//! ```text
//!   taken, of the right length ◄── [ first page | takes | pages ] ◄── given back, side by side with it
//!                                              │
//!                                              ▼ collected, by whoever has the lock
//! ```
//!
//! The payload of a few pages after the last one of that size is made of the same pages, still in the
//! cache. To the bitmaps these pages are taken; they have memory and are mapped.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

use super::pages::Run;

/// More lanes than that share theirs.
pub(super) const LANES: u32 = if cfg!(loom) { 2 } else { 16 };

/// After so many new extents a run is to be collected, so that the clock is asked now and then.
pub(super) const TICK: u32 = if cfg!(loom) { 2 } else { 64 };

/// In the place of a run: nothing may be kept here.
const CLOSED: u64 = u64::MAX;

/// A run for each lane.
pub(super) struct Stash {
    lanes: [Slot; LANES as usize],
    /// Most pages of a run.
    most: u16,
    /// Extents begin at multiples of so many pages: what lies elsewhere is for those that want to grow there.
    apart: u32,
}

/// In cache lines of its own, as a lane is mostly one thread's.
#[repr(align(128))]
struct Slot(AtomicU64);

/// What is kept for a lane.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub(super) run: Run,
    /// How often some of it was taken for a new extent.
    pub(super) takes: u32,
}

impl Stash {
    /// Keeps runs of up to `most` pages, and takes from those that begin at multiples of `apart`.
    pub(super) fn new(most: u32, apart: u32) -> Stash {
        let most = u16::try_from(most).unwrap_or(u16::MAX);
        Stash { lanes: std::array::from_fn(|_| Slot(AtomicU64::new(0))), most, apart }
    }

    /// Takes `want` pages from page `at` on, or where extents begin if that is not said.
    #[inline]
    pub(super) fn take(&self, lane: u32, want: u32, at: Option<u32>) -> Option<Run> {
        let slot = self.slot(lane);
        let before = slot.load(Ordering::Relaxed);
        let Kept { run: Run { start, len }, takes } = unpack(before)?;
        if want > len || at.map_or(start % self.apart != 0, |at| at != start) {
            return None;
        }
        let rest = Run { start: start + want, len: len - want };
        let after = pack(Kept { run: rest, takes: takes + u32::from(at.is_none()) });
        slot.compare_exchange(before, after, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(Run { start, len: want })
    }

    /// Keeps `run`, which is the caller's, mapped, and nobody else's; returns whether it did.
    #[inline]
    pub(super) fn give(&self, lane: u32, run: Run) -> bool {
        let slot = self.slot(lane);
        let before = slot.load(Ordering::Relaxed);
        let Some(Kept { run: kept, takes }) = unpack(before) else { return false };
        let start = if kept.len == 0 || run.end() == kept.start {
            run.start
        } else if kept.end() == run.start {
            kept.start
        } else {
            return false;
        };
        let len = kept.len + run.len;
        if len > u32::from(self.most) || takes >= TICK {
            return false;
        }
        let after = pack(Kept { run: Run { start, len }, takes });
        // Who takes these pages has to see that everybody here was done with them.
        slot.compare_exchange(before, after, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// Takes what is kept for a lane, for the bitmaps.
    pub(super) fn collect(&self, lane: u32) -> Option<Kept> {
        let slot = self.slot(lane);
        match slot.load(Ordering::Relaxed) {
            0 | CLOSED => None,
            _ => unpack(slot.swap(0, Ordering::Acquire)),
        }
    }

    /// Takes what is kept from page `at` on, whatever the lane.
    pub(super) fn collect_at(&self, at: u32) -> Option<Kept> {
        let starts_there = |kept: Kept| kept.run.start == at && kept.run.len > 0;
        let lane = (0..LANES).find(|&lane| self.kept(lane).is_some_and(starts_there))?;
        self.collect(lane)
    }

    /// Keeps nothing any more; collects what was kept for a lane.
    pub(super) fn close(&self, lane: u32) -> Option<Kept> {
        unpack(self.slot(lane).swap(CLOSED, Ordering::Acquire))
    }

    /// Keeps runs again, after [`close`](Stash::close).
    pub(super) fn open(&self) {
        for Slot(slot) in &self.lanes {
            // What is closed is left alone by all others.
            let _open = slot.compare_exchange(CLOSED, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// How many pages are kept, and how many takes were counted, while others go on with that.
    pub(super) fn sum(&self) -> (u32, u32) {
        let kept = (0..LANES).filter_map(|lane| self.kept(lane));
        kept.fold((0, 0), |(pages, takes), kept| (pages + kept.run.len, takes + kept.takes))
    }

    /// Whether `pages`, which are all that are taken, are kept here.
    pub(super) fn is_all(&self, pages: u32) -> bool {
        pages > 0 && pages <= LANES * u32::from(self.most) && pages == self.sum().0
    }

    /// What is kept for a lane, unless it is closed.
    pub(super) fn kept(&self, lane: u32) -> Option<Kept> {
        unpack(self.slot(lane).load(Ordering::Relaxed))
    }

    #[inline]
    fn slot(&self, lane: u32) -> &AtomicU64 {
        &self.lanes[(lane % LANES) as usize].0
    }
}

#[inline]
fn pack(Kept { run: Run { start, len }, takes }: Kept) -> u64 {
    u64::from(start) << 32 | u64::from(takes) << 16 | u64::from(len)
}

/// `None` if it is closed.
#[inline]
fn unpack(kept: u64) -> Option<Kept> {
    let part =
        |shift: u32, bits: u32| u32::try_from(kept << (64 - shift - bits) >> (64 - bits)).unwrap_or(u32::MAX);
    let run = Run { start: part(32, 32), len: part(0, 16) };
    (kept != CLOSED).then(|| Kept { run, takes: part(16, 16) })
}

#[cfg(all(test, not(loom), not(miri)))]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{Pool, PoolOptions, Rope};

    const CAPACITY: usize = 256 * 4096;
    const PAYLOAD: usize = 32 * 4096;

    fn pool(options: impl FnOnce(PoolOptions) -> PoolOptions) -> Pool {
        options(Pool::options().capacity(CAPACITY as u64)).create().unwrap()
    }

    fn filled(pool: &Pool, bytes: usize) -> Rope {
        let mut rope = Rope::in_pool(pool);
        rope.reserve(bytes).unwrap();
        rope.extend_from_slice(&vec![7; bytes]);
        rope
    }

    /// Has another thread fill and drop a rope, whose pages it keeps at hand.
    fn elsewhere(pool: &Pool, bytes: usize) {
        thread::scope(|scope| scope.spawn(|| drop(filled(pool, bytes))).join().unwrap());
        // The first time they were not mapped before they were filled.
        thread::scope(|scope| scope.spawn(|| drop(filled(pool, bytes))).join().unwrap());
        assert_eq!(pool.0.leases.at_hand() as usize * 4096, bytes);
        pool.assert_invariants();
    }

    #[test]
    fn pages_come_back_as_they_were_given() {
        let stash = Stash::new(8, 1);
        let run = |start, len| Run { start, len };
        assert_eq!(stash.take(0, 1, None), None);
        assert!(stash.give(0, run(4, 2)));
        assert!(!stash.give(0, run(7, 1)) && !stash.give(0, run(2, 1)), "not side by side");
        assert!(stash.give(0, run(6, 2)) && stash.give(0, run(2, 2)));
        assert!(!stash.give(0, run(8, 3)), "too many");
        assert_eq!(stash.sum(), (6, 0));
        assert_eq!(stash.take(0, 7, None), None);
        assert_eq!(stash.take(1, 1, None), None);
        assert_eq!((stash.take(0, 1, Some(3)), stash.take(0, 1, Some(2))), (None, Some(run(2, 1))));
        assert_eq!(stash.take(0, 3, None), Some(run(3, 3)));
        assert!(stash.collect_at(3).is_none());
        assert_eq!(stash.collect_at(6).map(|kept| (kept.run, kept.takes)), Some((run(6, 2), 1)));
        assert!(stash.collect(0).is_none());
    }

    #[test]
    fn what_is_closed_keeps_nothing() {
        let stash = Stash::new(8, 1);
        let run = Run { start: 1, len: 3 };
        assert!(stash.give(2, run));
        let closed: Vec<_> = (0..LANES).filter_map(|lane| stash.close(lane)).map(|kept| kept.run).collect();
        assert!(closed.contains(&run));
        assert!(!stash.give(2, run) && stash.take(2, 1, None).is_none());
        assert!(stash.collect(2).is_none() && stash.kept(2).is_none());
        stash.open();
        assert!(stash.give(2, run));
        stash.open();
        assert_eq!(stash.take(2, 3, None), Some(run));
    }

    #[test]
    fn a_run_is_collected_now_and_then() {
        let stash = Stash::new(8, 1);
        let run = Run { start: 1, len: 1 };
        for _ in 0..TICK {
            assert!(stash.give(0, run));
            assert_eq!(stash.take(0, 1, None), Some(run));
        }
        assert!(!stash.give(0, run));
        assert_eq!(stash.collect(0).map(|kept| (kept.run.len, kept.takes)), Some((0, TICK)));
        assert!(stash.give(0, run));
    }

    #[test]
    fn they_are_counted_as_free_and_warm() {
        let pool = pool(|options| options);
        elsewhere(&pool, PAYLOAD);
        let stats = pool.stats();
        assert_eq!((stats.in_use, stats.warm, stats.extents), (0, PAYLOAD as u64, 2));
        for _ in 0..3 * TICK {
            drop(filled(&pool, 4096));
        }
        let mut grown = filled(&pool, 4096);
        grown.extend_from_slice(&[7; 8 * 4096]);
        drop(grown);
        assert_eq!(pool.stats().extents, 3 + 3 * u64::from(TICK));
        assert_eq!(pool.trim().unwrap(), pool.stats().peak);
        assert_eq!((pool.0.leases.at_hand(), pool.stats().warm), (0, 0));
        pool.assert_invariants();
    }

    #[test]
    fn a_rope_that_is_alone_has_all_pages_side_by_side() {
        let pool = pool(|options| options);
        elsewhere(&pool, PAYLOAD);
        let mut rope = Rope::in_pool(&pool);
        rope.extend_from_slice(&[7; CAPACITY / 2]);
        rope.extend_from_slice(&[7; CAPACITY / 2]);
        let view = rope.finalize().unwrap();
        assert_eq!((view.num_maps(), view.copied_bytes(), pool.stats().fallbacks), (0, 0, 0));
    }

    #[test]
    fn a_pool_is_not_full_while_somebody_has_pages_at_hand() {
        let pool = pool(|options| options);
        let here = filled(&pool, CAPACITY - PAYLOAD);
        elsewhere(&pool, PAYLOAD);
        let mut rope = Rope::in_pool(&pool);
        rope.reserve(PAYLOAD).unwrap();
        assert_eq!(pool.stats().in_use, CAPACITY as u64);
        drop((here, rope));
    }

    #[test]
    fn a_rope_grows_into_what_another_thread_has_at_hand() {
        let pool = pool(|options| options);
        let mut rope = filled(&pool, 4096);
        elsewhere(&pool, PAYLOAD);
        rope.extend_from_slice(&[7; PAYLOAD]);
        let view = rope.finalize().unwrap();
        assert_eq!((view.num_maps(), view.copied_bytes()), (0, 0));
    }

    #[test]
    fn who_waits_sees_them_and_what_is_given_meanwhile() {
        #[derive(Default)]
        struct Woken(AtomicUsize);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let pool = pool(|options| options);
        let here = filled(&pool, CAPACITY - 2 * PAYLOAD);
        elsewhere(&pool, PAYLOAD);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        {
            let mut first = pin!(pool.wait_for_room(2 * PAYLOAD));
            assert!(first.as_mut().poll(&mut context).is_ready());
            let rope = filled(&pool, PAYLOAD);
            let mut second = pin!(pool.wait_for_room(2 * PAYLOAD));
            assert!(second.as_mut().poll(&mut context).is_pending());
            assert!(first.as_mut().poll(&mut context).is_pending());
            thread::scope(|scope| scope.spawn(|| drop(rope)).join().unwrap());
            assert_eq!((woken.0.load(Ordering::Relaxed), pool.0.leases.at_hand()), (1, 0));
            assert!(first.as_mut().poll(&mut context).is_ready());
        }
        // Nobody waits any more.
        drop(here);
        elsewhere(&pool, PAYLOAD);
    }

    #[test]
    fn they_go_back_to_the_system_like_others() {
        let decay = Duration::from_millis(20);
        let pool = pool(|options| options.decay(decay));
        elsewhere(&pool, PAYLOAD);
        thread::sleep(decay);
        assert_eq!(pool.stats().warm, 0);
        // The clock goes on though nobody needs the lock: what is left of a large payload goes.
        drop(filled(&pool, CAPACITY));
        let begun = Instant::now();
        while pool.0.leases.stats().warm > PAYLOAD as u64 {
            drop(filled(&pool, 4096));
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", pool.0.leases.stats());
        }
    }

    #[test]
    fn where_memory_is_watched_nothing_is_kept() {
        for pool in [pool(|options| options.retain(1 << 20)), pool(|options| options.zero_on_release(true))] {
            (0..3).for_each(|_| drop(filled(&pool, PAYLOAD)));
            assert_eq!((pool.0.leases.at_hand(), pool.stats().warm), (0, PAYLOAD as u64));
        }
    }
}
