//! The page cache of a shard: one run of free, resident pages, allocated and freed without the pool's lock.
//! `loom/` checks it.
//!
//! ```text
//!   allocate from its front ◄── [ first page | allocations | pages ] ◄── free, if adjacent
//!                                           │
//!                                           ▼ flush, under the lock
//! ```
//!
//! A payload of a few pages then reuses the pages of the one before it, which are still in the processor's cache. To
//! the bitmaps these pages are allocated.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

use super::runs::PageRun;

/// Sentinel: the cache is closed; callers must use the shared allocator.
const CLOSED: u64 = u64::MAX;

/// Aligned to two cache lines, which some processors fetch together: a shard is mostly one thread's.
#[repr(align(128))]
pub(super) struct PageCache {
    /// A packed [`Cached`].
    word: AtomicU64,
    /// Most pages in it, below 2^16.
    capacity: u32,
    /// Extents start at multiples of so many pages; a run that starts elsewhere is left to extents that grow there.
    alignment: u32,
    /// Allocations after which the cache refuses pages, so that the next free takes the lock and looks at the clock.
    tick: u32,
}

/// What a cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cached {
    pub(super) run: PageRun,
    /// Extents that were allocated from it since it was flushed.
    pub(super) extents: u32,
}

impl PageCache {
    pub(super) fn new(capacity: u32, alignment: u32, tick: u32) -> PageCache {
        let most = u32::from(u16::MAX) - 1;
        PageCache { word: AtomicU64::new(0), capacity: capacity.min(most), alignment, tick: tick.min(most) }
    }

    /// Allocates `want` pages for a new extent, with slack behind it.
    #[inline]
    pub(super) fn allocate(&self, want: u32) -> Option<PageRun> {
        self.take(want, 1, |run| run.start % self.alignment == 0)
    }

    /// Allocates `want` pages for an extent that needs no slack.
    #[inline]
    pub(super) fn allocate_exact(&self, want: u32) -> Option<PageRun> {
        self.take(want, 1, |_| true)
    }

    /// Allocates `want` pages from page `at` on, for an extent that ends there.
    #[inline]
    pub(super) fn grow(&self, at: u32, want: u32) -> Option<PageRun> {
        self.take(want, 0, |run| run.start == at)
    }

    #[inline]
    fn take(&self, want: u32, extents: u32, fits: impl FnOnce(PageRun) -> bool) -> Option<PageRun> {
        let before = self.word.load(Ordering::Relaxed);
        let cached = unpack(before).filter(|cached| want <= cached.run.len && fits(cached.run))?;
        let rest = PageRun::new(cached.run.start + want, cached.run.len - want);
        let after = pack(Cached { run: rest, extents: cached.extents + extents });
        // Acquire: pairs with the release in `free`, whose caller was done with the pages.
        self.word.compare_exchange(before, after, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(PageRun::new(cached.run.start, want))
    }

    /// Frees pages that are resident and have no other owner; returns whether they were accepted.
    #[inline]
    pub(super) fn free(&self, run: PageRun) -> bool {
        let before = self.word.load(Ordering::Relaxed);
        let Some(Cached { run: cached, extents }) = unpack(before) else { return false };
        let start = if cached.len == 0 || run.end() == cached.start {
            run.start
        } else if cached.end() == run.start {
            cached.start
        } else {
            return false;
        };
        let joined = PageRun::new(start, cached.len + run.len);
        if joined.len > self.capacity || extents >= self.tick {
            return false;
        }
        let after = pack(Cached { run: joined, extents });
        self.word.compare_exchange(before, after, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// Takes everything, for the bitmaps. A closed cache stays closed and yields nothing.
    pub(super) fn flush(&self) -> Cached {
        match self.word.load(Ordering::Relaxed) {
            0 | CLOSED => Cached::default(),
            _ => self.replace(0),
        }
    }

    /// Takes everything, and accepts nothing any more.
    pub(super) fn close(&self) -> Cached {
        self.replace(CLOSED)
    }

    /// Accepts pages again, after [`close`](PageCache::close). The caller holds the pool's lock, as for that.
    pub(super) fn open(&self) {
        // A closed cache is changed by no one else.
        let _opened = self.word.compare_exchange(CLOSED, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Returns what it holds at the moment.
    pub(super) fn peek(&self) -> Cached {
        unpack(self.word.load(Ordering::Relaxed)).unwrap_or_default()
    }

    fn replace(&self, word: u64) -> Cached {
        unpack(self.word.swap(word, Ordering::Acquire)).unwrap_or_default()
    }
}

#[inline]
fn pack(Cached { run: PageRun { start, len }, extents }: Cached) -> u64 {
    u64::from(start) << 32 | u64::from(extents) << 16 | u64::from(len)
}

/// `None` if it is closed.
#[inline]
#[allow(clippy::cast_possible_truncation)] // the parts of a word
fn unpack(word: u64) -> Option<Cached> {
    let run = PageRun::new((word >> 32) as u32, word as u32 & 0xffff);
    (word != CLOSED).then_some(Cached { run, extents: word as u32 >> 16 })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn run(start: u32, len: u32) -> PageRun {
        PageRun::new(start, len)
    }

    #[test]
    fn pages_come_back_as_they_were_freed() {
        let cache = PageCache::new(8, 1, 64);
        assert_eq!(cache.allocate(1), None);
        assert!(cache.free(run(4, 2)));
        assert!(!cache.free(run(7, 1)) && !cache.free(run(2, 1)), "not adjacent");
        assert!(cache.free(run(6, 2)) && cache.free(run(2, 2)));
        assert!(!cache.free(run(8, 3)), "too many");
        assert_eq!(cache.allocate(7), None);
        assert_eq!((cache.grow(3, 1), cache.grow(2, 1)), (None, Some(run(2, 1))));
        assert_eq!(cache.allocate(3), Some(run(3, 3)));
        assert_eq!(cache.flush(), Cached { run: run(6, 2), extents: 1 });
        assert_eq!(cache.flush(), Cached::default());
    }

    #[test]
    fn extents_start_where_they_have_slack() {
        let cache = PageCache::new(8, 4, 64);
        assert!(cache.free(run(3, 4)));
        assert_eq!((cache.allocate(1), cache.grow(3, 1)), (None, Some(run(3, 1))));
        assert_eq!(cache.allocate(1), Some(run(4, 1)));
        assert_eq!((cache.allocate(1), cache.allocate_exact(1)), (None, Some(run(5, 1))));
    }

    #[test]
    fn a_closed_cache_accepts_nothing() {
        let cache = PageCache::new(8, 1, 64);
        assert!(cache.free(run(1, 3)));
        assert_eq!(cache.close().run, run(1, 3));
        assert!(!cache.free(run(1, 3)) && cache.allocate(1).is_none());
        assert_eq!((cache.flush(), cache.peek()), (Cached::default(), Cached::default()));
        cache.open();
        assert!(cache.free(run(1, 3)));
        cache.open();
        assert_eq!(cache.allocate(3), Some(run(1, 3)));
    }

    #[test]
    fn pages_are_refused_now_and_then() {
        let cache = PageCache::new(8, 1, 3);
        for _ in 0..3 {
            assert!(cache.free(run(1, 1)));
            assert_eq!(cache.allocate(1), Some(run(1, 1)));
        }
        assert!(!cache.free(run(1, 1)));
        assert_eq!(cache.flush(), Cached { run: run(1, 0).start_only(), extents: 3 });
        assert!(cache.free(run(1, 1)));
    }

    impl PageRun {
        /// An empty run keeps the place where it ended.
        fn start_only(self) -> PageRun {
            PageRun::new(self.start + 1, 0)
        }
    }
}
