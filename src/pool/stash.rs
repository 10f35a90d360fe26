//! What each lane has at hand: one run of free pages, which its threads take from and give back to without
//! the lock. `loom/` checks it.
//!
//! ```text
//!   taken, from its front ◄── [ first page | takes | mapped | pages ] ◄── given back, side by side with it
//!                                              │
//!                                              ▼ collected, by whoever has the lock
//! ```
//!
//! The payload of a few pages after the last one of that size is made of the same pages, still in the
//! cache. To the bitmaps these pages are taken.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

use super::pages::{Run, Taken};

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
    most: u8,
    /// Extents begin at multiples of so many pages: what lies elsewhere is for those that want to grow there.
    apart: u32,
}

/// In cache lines of its own, as a lane is mostly one thread's.
#[repr(align(128))]
struct Slot(AtomicU64);

/// What is kept for a lane.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub(super) pages: Taken,
    /// How often some of it was taken for a new extent.
    pub(super) takes: u32,
}

/// What is kept for all lanes.
#[derive(Default)]
pub(super) struct Sum {
    pub(super) pages: u32,
    pub(super) takes: u32,
}

impl Stash {
    /// Keeps runs of up to `most` pages, and takes from those that begin at multiples of `apart`.
    pub(super) fn new(most: u32, apart: u32) -> Stash {
        let most = u8::try_from(most).unwrap_or(u8::MAX);
        Stash { lanes: std::array::from_fn(|_| Slot(AtomicU64::new(0))), most, apart }
    }

    /// Takes `want` pages for a new extent, all of them mapped.
    #[inline]
    pub(super) fn take(&self, lane: u32, want: u32) -> Option<Taken> {
        self.take_if(lane, want, 1, |kept| kept.run.start % self.apart == 0 && want <= kept.mapped)
    }

    /// Takes `want` pages from page `at` on, at least half of them mapped: there may be better ones elsewhere.
    #[inline]
    pub(super) fn take_at(&self, lane: u32, at: u32, want: u32) -> Option<Taken> {
        self.take_if(lane, want, 0, |kept| kept.run.start == at && want <= kept.run.len.min(2 * kept.mapped))
    }

    #[inline]
    fn take_if(&self, lane: u32, want: u32, takes: u32, fits: impl FnOnce(Taken) -> bool) -> Option<Taken> {
        let slot = self.slot(lane);
        let before = slot.load(Ordering::Relaxed);
        let kept = unpack(before).filter(|kept| fits(kept.pages))?;
        let Run { start, len } = kept.pages.run;
        let rest = kept.pages.part(start + want..start + len);
        let after = pack(Kept { pages: rest, takes: kept.takes + takes });
        slot.compare_exchange(before, after, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(kept.pages.part(start..start + want))
    }

    /// Keeps `pages`, which are the caller's and nobody else's; returns whether it did.
    #[inline]
    pub(super) fn give(&self, lane: u32, pages: Taken) -> bool {
        let slot = self.slot(lane);
        let before = slot.load(Ordering::Relaxed);
        let Some(Kept { pages: kept, takes }) = unpack(before) else { return false };
        let (mut all, behind) = if kept.run.len == 0 {
            (pages, None)
        } else if kept.run.end() == pages.run.start {
            (kept, Some(pages))
        } else if pages.run.end() == kept.run.start {
            (pages, Some(kept))
        } else {
            return false;
        };
        if let Some(behind) = behind {
            all.append(behind);
        }
        if all.run.len > u32::from(self.most) || takes >= TICK {
            return false;
        }
        // Who takes these pages has to see that everybody here was done with them.
        let after = pack(Kept { pages: all, takes });
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
        let starts_there = |Kept { pages: Taken { run, .. }, .. }| run.start == at && run.len > 0;
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

    /// How much is kept in all lanes, while others go on with that.
    pub(super) fn sum(&self) -> Sum {
        let kept = (0..LANES).filter_map(|lane| self.kept(lane));
        kept.fold(Sum::default(), |sum, Kept { pages, takes }| Sum {
            pages: sum.pages + pages.run.len,
            takes: sum.takes + takes,
        })
    }

    /// Whether `pages`, which are all that are taken, are kept here.
    pub(super) fn is_all(&self, pages: u32) -> bool {
        pages > 0 && pages <= LANES * u32::from(self.most) && pages == self.sum().pages
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
fn pack(Kept { pages: Taken { run: Run { start, len }, mapped }, takes }: Kept) -> u64 {
    u64::from(start) << 32 | u64::from(takes) << 16 | u64::from(mapped) << 8 | u64::from(len)
}

/// `None` if it is closed.
#[inline]
fn unpack(kept: u64) -> Option<Kept> {
    let part = |from: u32, bits: u32| u32::try_from(kept << (64 - from - bits) >> (64 - bits)).unwrap_or(0);
    let run = Run { start: part(32, 32), len: part(0, 8) };
    (kept != CLOSED).then(|| Kept { pages: Taken { run, mapped: part(8, 8) }, takes: part(16, 16) })
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

    fn mapped(start: u32, len: u32) -> Taken {
        Taken::mapped(Run { start, len })
    }

    /// Has another thread fill and drop a rope, whose pages it keeps at hand.
    fn elsewhere(pool: &Pool, bytes: usize) {
        thread::scope(|scope| scope.spawn(|| drop(filled(pool, bytes))).join().unwrap());
        assert_eq!(pool.0.leases.at_hand() as usize * 4096, bytes);
        pool.assert_invariants();
    }

    #[test]
    fn pages_come_back_as_they_were_given() {
        let stash = Stash::new(8, 1);
        assert_eq!(stash.take(0, 1), None);
        assert!(stash.give(0, mapped(4, 2)));
        assert!(!stash.give(0, mapped(7, 1)) && !stash.give(0, mapped(2, 1)), "not side by side");
        assert!(stash.give(0, mapped(6, 2)) && stash.give(0, mapped(2, 2)));
        assert!(!stash.give(0, mapped(8, 3)), "too many");
        assert_eq!((stash.take(0, 7), stash.take(1, 1)), (None, None));
        assert_eq!((stash.take_at(0, 3, 1), stash.take_at(0, 2, 1)), (None, Some(mapped(2, 1))));
        assert_eq!(stash.take(0, 3), Some(mapped(3, 3)));
        assert!(stash.collect_at(3).is_none());
        assert_eq!(stash.collect_at(6).map(|kept| (kept.pages, kept.takes)), Some((mapped(6, 2), 1)));
        assert!(stash.collect(0).is_none());
    }

    #[test]
    fn pages_that_are_not_mapped_are_only_grown_into() {
        let stash = Stash::new(8, 2);
        let half = |start, len| Taken { mapped: len / 2, ..mapped(start, len) };
        assert!(stash.give(0, half(4, 4)) && stash.give(0, mapped(2, 2)));
        assert_eq!(stash.kept(0).map(|kept| kept.pages), Some(Taken { mapped: 4, ..mapped(2, 6) }));
        assert_eq!(stash.take(0, 5), None);
        assert_eq!(stash.take(0, 2), Some(mapped(2, 2)));
        assert!(stash.give(0, mapped(3, 1)));
        assert_eq!(stash.take(0, 1), None, "it begins elsewhere");
        assert_eq!(stash.take_at(0, 3, 1), Some(mapped(3, 1)));
        assert_eq!(stash.take_at(0, 4, 4), Some(half(4, 4)));
        assert!(stash.give(0, half(8, 4)) && stash.give(0, mapped(12, 1)));
        assert_eq!(stash.take_at(0, 8, 5), None, "most of it has no memory");
    }

    #[test]
    fn only_what_joins_on_is_known_to_be_mapped() {
        let mut pages = Taken { mapped: 2, ..mapped(10, 8) };
        pages.set_mapped(Run { start: 14, len: 2 });
        assert_eq!(pages.mapped, 2);
        pages.set_mapped(Run { start: 12, len: 2 });
        pages.set_mapped(Run { start: 10, len: 1 });
        assert_eq!(pages.mapped, 4);
    }

    #[test]
    fn what_is_closed_keeps_nothing() {
        let stash = Stash::new(8, 1);
        let run = mapped(1, 3);
        assert!(stash.give(2, run));
        let closed: Vec<_> = (0..LANES).filter_map(|lane| stash.close(lane)).map(|kept| kept.pages).collect();
        assert!(closed.contains(&run));
        assert!(!stash.give(2, run) && stash.take(2, 1).is_none());
        assert!(stash.collect(2).is_none() && stash.kept(2).is_none());
        stash.open();
        assert!(stash.give(2, run));
        stash.open();
        assert_eq!(stash.take(2, 3), Some(run));
    }

    #[test]
    fn a_run_is_collected_now_and_then() {
        let stash = Stash::new(8, 1);
        let run = mapped(1, 1);
        for _ in 0..TICK {
            assert!(stash.give(0, run));
            assert_eq!(stash.take(0, 1), Some(run));
        }
        assert!(!stash.give(0, run));
        assert_eq!(stash.collect(0).map(|kept| (kept.pages.run.len, kept.takes)), Some((0, TICK)));
        assert!(stash.give(0, run));
    }

    #[test]
    fn they_are_counted_as_free_and_warm() {
        let pool = pool(|options| options);
        elsewhere(&pool, PAYLOAD);
        let stats = pool.stats();
        assert_eq!((stats.in_use, stats.warm, stats.extents), (0, PAYLOAD as u64, 1));
        for _ in 0..3 * TICK {
            drop(filled(&pool, 4096));
        }
        let mut grown = filled(&pool, 4096);
        grown.extend_from_slice(&[7; 8 * 4096]);
        drop(grown);
        assert_eq!(pool.stats().extents, 2 + 3 * u64::from(TICK));
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
