//! Who owns which pages: a count on each of them, and the free ones at hand or behind a lock.
#![allow(clippy::inline_always)] // takes what is at hand where it is needed, without a detour through memory

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::arena::{Arena, Backing};
use super::counts::Counts;
use super::lane::{self, Places};
use super::line::Line;
use super::pages::{Pages, Run, Taken};
use super::stash::{Kept, LANES, Stash, TICK};
use super::{Pool, PoolOptions, PoolStats};
use crate::event::event;
use crate::sys::memory;

/// Most bytes that a lane keeps at hand: what the largest first read asks for.
const STASH: usize = 256 << 10;

/// All pages of a pool.
pub(super) struct Leases {
    arena: Arena,
    counts: Counts,
    stash: Stash,
    free: Mutex<Free>,
    retain: u32,
    decay: Duration,
    zero_on_release: bool,
    reduced: bool,
}

/// In cache lines of its own: whoever has the lock writes to it, and all others only read what is beside it.
#[repr(align(128))]
struct Free {
    pages: Pages,
    places: Places,
    peak: u32,
    /// Memory was refused when it was last asked for: pages that have some are taken wherever they are.
    scarce: bool,
    /// Runs that were taken.
    extents: u64,
    /// Fewest warm free pages since `period`: so many were of no use to anybody.
    idle: u32,
    period: Instant,
    /// When pages were last given back, as far as the clock was asked.
    last_given: Instant,
    /// How often pages were given back or kept at hand since the clock was last asked.
    gives: u32,
    line: Line,
}

/// Some neighbouring pages of a pool. Each page is given back when its last lease goes.
pub(super) struct Lease {
    pool: Pool,
    pages: Taken,
}

impl Leases {
    pub(super) fn new(options: &PoolOptions) -> io::Result<Leases> {
        let huge = if options.huge_pages { memory::huge_page_size() } else { None };
        let size = huge.unwrap_or_else(memory::page_size);
        let page = size as u64;
        let pages = options.capacity.div_ceil(page);
        if pages == 0 || pages > u64::from(u32::MAX) {
            let message =
                format!("a pool's capacity is 1 byte to 2^32 pages, not {} bytes", options.capacity);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let arena = Arena::new(pages * page, size, options.huge_pages)?;
        let total = arena.pages();
        // What is at hand is not looked at again.
        let looked_at = options.zero_on_release || options.retain < u64::MAX;
        let stash = if looked_at { 0 } else { to_page(STASH.div_ceil(size)) };
        let places = Places::new(size);
        let now = Instant::now();
        Ok(Leases {
            counts: Counts::new(total),
            stash: Stash::new(stash, places.least_room()),
            free: Mutex::new(Free {
                pages: Pages::new(total),
                places,
                peak: 0,
                scarce: false,
                extents: 0,
                idle: 0,
                period: now,
                last_given: now,
                gives: 0,
                line: Line::default(),
            }),
            retain: u32::try_from(options.retain / page).unwrap_or(u32::MAX),
            decay: options.decay,
            zero_on_release: options.zero_on_release,
            reduced: u64::from(total) < pages || arena.backing() != Backing::Memfd,
            arena,
        })
    }

    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Tells what the pool was made of.
    pub(super) fn announce(&self) {
        event!(
            debug,
            capacity = self.bytes(self.arena.pages()),
            backing = ?self.arena.backing(),
            "pool created"
        );
        if self.reduced {
            event!(warn, "the kernel refused a memfd, or a reservation of the size asked for");
        }
    }

    pub(super) fn stats(&self) -> PoolStats {
        let free = self.free();
        let bytes = |pages| self.bytes(pages);
        let at_hand = self.stash.sum();
        let kept = (0..LANES).filter_map(|lane| self.stash.kept(lane));
        let warm_at_hand: u32 = kept.map(|kept| free.pages.warm_in(kept.pages.run)).sum();
        PoolStats {
            capacity: bytes(free.pages.total()),
            in_use: bytes(free.pages.in_use().saturating_sub(at_hand.pages)),
            warm: bytes(free.pages.warm_free() + warm_at_hand),
            peak: bytes(free.peak),
            page_size: self.arena.page_size() as u64,
            backing: self.arena.backing(),
            reduced: self.reduced,
            extents: free.extents + u64::from(at_hand.takes),
            waiting: free.line.len() as u64,
            ..PoolStats::default()
        }
    }

    /// Takes pages for a new extent, by one of the ways of [`Pages`]. Their first lease needs no count.
    #[inline(never)]
    fn take(&self, take: impl Fn(&mut Free) -> Option<Taken>) -> Option<Taken> {
        let mut free = self.free();
        free.collect(self.stash.collect(lane::number()));
        // A rope that is alone, or short of memory, has need of all.
        if free.scarce || self.stash.is_all(free.pages.in_use()) {
            free.collect_all(&self.stash);
        }
        let taken = take(&mut free).or_else(|| {
            free.collect_all(&self.stash);
            take(&mut free)
        })?;
        free.extents += 1;
        free.note();
        Some(taken)
    }

    /// Takes up to or exactly `want` pages from page `at` on.
    #[inline(never)]
    fn take_at(&self, at: u32, want: u32, exactly: bool) -> Option<Taken> {
        let mut free = self.free();
        free.collect(self.stash.collect(lane::number()));
        if at < free.pages.total() && free.pages.is_taken(at) {
            free.collect(self.stash.collect_at(at));
        }
        let taken = if exactly { free.pages.take_exact_at(at, want) } else { free.take_at(at, want) }?;
        free.note();
        Some(taken)
    }

    /// Counts one lease less on each page and gives back those that have none left.
    #[inline]
    fn release(&self, pages: Taken) {
        self.counts.release(pages.run, |run| self.give(pages.part(run.range())));
    }

    #[inline]
    fn give(&self, pages: Taken) {
        debug_assert!(pages.run.len > 0);
        if !self.stash.give(lane::number(), pages) {
            self.give_to_all(pages.run);
        }
    }

    #[inline(never)]
    fn give_to_all(&self, run: Run) {
        if self.zero_on_release {
            let written = self.free().pages.warm_prefix(run);
            self.arena.zero(Run { start: run.start, len: written });
        }
        let (surplus, waker) = {
            let mut free = self.free();
            free.collect(self.stash.collect(lane::number()));
            let stale = free.tick(self.decay, &self.stash);
            let waker = free.give(run);
            (stale.max(free.pages.warm_free().saturating_sub(self.retain)), waker)
        };
        waker.into_iter().for_each(Waker::wake);
        self.give_back_quietly(surplus);
    }

    /// Gives back what has been idle for as long as `decay`.
    pub(super) fn give_back_idle(&self) {
        let surplus = self.free().surplus(Instant::now(), self.decay, &self.stash);
        self.give_back_quietly(surplus);
    }

    fn give_back_quietly(&self, pages: u32) {
        if pages > 0 {
            // What the kernel would not take back stays warm and usable: nothing is lost.
            let _given = self.give_back(pages);
            event!(trace, bytes = ?_given, "idle memory given back");
        }
    }

    /// Gives all warm free pages back to the system.
    pub(super) fn trim(&self) -> io::Result<u64> {
        self.free().collect_all(&self.stash);
        self.give_back(u32::MAX)
    }

    /// Gives up to `pages` warm free pages, the highest first, back to the system.
    fn give_back(&self, pages: u32) -> io::Result<u64> {
        let (mut left, mut bytes) = (pages, 0);
        // Taken while the hole is punched, so that nobody fills them meanwhile.
        while let Some(run) = { self.free().pages.take_highest_warm(left) } {
            let done = self.arena.decommit(run);
            let mut free = self.free();
            if done.is_ok() {
                free.pages.set_cold(run);
            }
            let waker = free.give(run);
            free.idle = free.idle.min(free.pages.warm_free());
            drop(free);
            waker.into_iter().for_each(Waker::wake);
            done?;
            left -= run.len;
            bytes += self.bytes(run.len);
        }
        Ok(bytes)
    }

    /// Call while nobody else uses the pool.
    #[cfg(any(test, fuzzing))]
    pub(super) fn assert_invariants(&self) {
        let free = self.free();
        free.pages.assert_invariants();
        for page in 0..free.pages.total() {
            assert!(free.pages.is_taken(page) || !self.counts.is_shared(page), "page {page}");
        }
        for page in
            (0..LANES).filter_map(|lane| self.stash.kept(lane)).flat_map(|kept| kept.pages.run.range())
        {
            assert!(free.pages.is_taken(page) && !self.counts.is_shared(page), "page {page} is at hand");
        }
    }

    /// Pages that are kept at hand.
    #[cfg(test)]
    pub(super) fn at_hand(&self) -> u32 {
        self.stash.sum().pages
    }

    /// Looks at the line of those who wait, and at how many bytes are free. While anybody waits nothing is kept
    /// at hand: whatever is given back is to be seen by those in the line.
    pub(super) fn with_line<T>(&self, look: impl FnOnce(&mut Line, u64) -> T) -> T {
        let mut free = self.free();
        (0..LANES).for_each(|lane| free.collect(self.stash.close(lane)));
        let pages = free.pages.total() - free.pages.in_use();
        let seen = look(&mut free.line, self.bytes(pages));
        if free.line.len() == 0 {
            self.stash.open();
        }
        seen
    }

    #[cfg(feature = "tokio")]
    pub(super) fn has_line(&self) -> bool {
        self.free().line.len() > 0
    }

    pub(super) fn bytes(&self, pages: u32) -> u64 {
        u64::from(pages) * self.arena.page_size() as u64
    }

    /// Nothing panics while it holds this lock, so it cannot be poisoned.
    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Free {
    // Where memory is scarce, pages that have some come before a good place.

    fn take(&mut self, want: u32, held: u32) -> Option<Taken> {
        let Free { pages, places, scarce, .. } = self;
        if *scarce { pages.take(want, 1) } else { places.take(pages, want, held) }
    }

    fn take_exact(&mut self, want: u32) -> Option<Taken> {
        let Free { pages, places, scarce, .. } = self;
        if *scarce { pages.take_exact(want) } else { places.take_exact(pages, want) }
    }

    fn take_at(&mut self, at: u32, want: u32) -> Option<Taken> {
        let Free { pages, places, scarce, .. } = self;
        if *scarce { pages.take_at(at, want, 1, 1) } else { places.take_at(pages, at, want) }
    }

    /// Returns whom to wake, once the lock is released.
    #[must_use]
    fn give(&mut self, run: Run) -> Option<Waker> {
        self.pages.give(run);
        self.line.given()
    }

    /// Takes note of what was taken.
    fn note(&mut self) {
        self.idle = self.idle.min(self.pages.warm_free());
        self.peak = self.peak.max(self.pages.in_use());
    }

    /// Marks pages that were at hand as free.
    fn collect(&mut self, kept: Option<Kept>) {
        if let Some(Kept { pages, takes }) = kept {
            self.pages.give(pages.run);
            self.extents += u64::from(takes);
            self.gives += takes;
        }
    }

    fn collect_all(&mut self, stash: &Stash) {
        (0..LANES).for_each(|lane| self.collect(stash.collect(lane)));
    }

    /// Looks at the clock now and then, before pages are given.
    fn tick(&mut self, decay: Duration, stash: &Stash) -> u32 {
        self.gives += 1;
        if self.gives < TICK {
            return 0;
        }
        self.gives = 0;
        let now = Instant::now();
        let surplus = self.surplus(now, decay, stash);
        self.last_given = now;
        surplus
    }

    /// How many warm pages nobody has wanted for as long as `decay`. Call before pages are given.
    fn surplus(&mut self, now: Instant, decay: Duration, stash: &Stash) -> u32 {
        let unused = now.saturating_duration_since(self.last_given) >= decay;
        if !unused && now.saturating_duration_since(self.period) < decay {
            return 0;
        }
        self.collect_all(stash);
        if unused {
            return self.pages.warm_free();
        }
        self.period = now;
        std::mem::replace(&mut self.idle, self.pages.warm_free())
    }
}

impl Lease {
    /// Up to `want` pages for a rope that holds `held` already.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` when the pool is at its capacity.
    #[inline(always)]
    pub(super) fn take(pool: &Pool, want: u32, held: u32) -> io::Result<Lease> {
        Self::with(pool, want, |free| free.take(want, held))
    }

    /// Exactly `want` pages, side by side.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` when no such run is free.
    pub(super) fn take_exact(pool: &Pool, want: u32) -> io::Result<Lease> {
        Self::with(pool, want, |free| free.take_exact(want))
    }

    #[inline(always)]
    fn with(pool: &Pool, want: u32, take: impl Fn(&mut Free) -> Option<Taken>) -> io::Result<Lease> {
        let leases = &pool.0.leases;
        match leases.stash.take(lane::number(), want).or_else(|| leases.take(take)) {
            Some(pages) => Ok(Lease { pool: pool.share(), pages }),
            None => Err(out_of_memory(&leases.stats(), want)),
        }
    }

    /// Takes up to `want` of the pages that follow, or just so many; returns those it got.
    pub(super) fn grow(&mut self, want: u32, exactly: bool) -> Option<Taken> {
        let (leases, end) = (self.leases(), self.run().end());
        let at_hand = leases.stash.take_at(lane::number(), end, want);
        let more = at_hand.or_else(|| leases.take_at(end, want, exactly))?;
        self.pages.append(more);
        Some(more)
    }

    /// Gives back all pages from page `end` of the arena on, of which this must be the only lease.
    pub(super) fn truncate(&mut self, end: u32) {
        let run = self.run();
        let end = end.clamp(run.start, run.end());
        let rest = self.pages.part(end..run.end());
        self.pages = self.pages.part(run.start..end);
        self.leases().give(rest);
    }

    /// Cuts at `offset` bytes into the arena: returns the pages before, keeps those behind. The page
    /// through which the cut goes belongs to both.
    pub(super) fn split_to(&mut self, offset: usize) -> Lease {
        let page = self.leases().arena.page_size();
        let front_end = to_page(offset.div_ceil(page));
        let rest_start = to_page(offset / page);
        if rest_start < front_end {
            self.leases().counts.add(Run { start: rest_start, len: 1 });
        }
        let front = self.pages.part(self.run().start..front_end);
        self.pages = self.pages.part(rest_start..self.run().end());
        Lease { pool: self.pool.share(), pages: front }
    }

    /// A further lease of the pages before `offset` bytes into the arena.
    pub(super) fn share_to(&self, offset: usize) -> Lease {
        let end = to_page(offset.div_ceil(self.leases().arena.page_size()));
        let pages = self.pages.part(self.run().start..end);
        self.leases().counts.add(pages.run);
        Lease { pool: self.pool.share(), pages }
    }

    /// Maps pages `first..end` of the arena, which are this lease's, and gives them memory if need be.
    pub(super) fn commit(&mut self, first: u32, end: u32) -> io::Result<()> {
        let run = Run { start: first, len: end - first };
        let leases = self.leases();
        let (mapped, warm) = {
            let free = leases.free();
            (free.pages.mapped_prefix(run), free.pages.warm_prefix(run))
        };
        if mapped < run.len {
            let committed = leases.arena.commit(run, warm == run.len);
            let mut free = leases.free();
            free.scarce = committed.is_err();
            committed?;
            free.pages.set_mapped(run);
        }
        self.pages.set_mapped(run);
        Ok(())
    }

    /// Whether `page` of the arena, which is this lease's, has no memory.
    pub(super) fn is_cold(&self, page: u32) -> bool {
        self.leases().free().pages.warm_prefix(Run { start: page, len: 1 }) == 0
    }

    /// pwrite(2) to the page at `first`, which is this lease's and cold, and those behind it. Returns how
    /// much was written; less than all is an error of the kernel's.
    pub(super) fn write(&self, first: u32, bytes: &[u8]) -> usize {
        let leases = self.leases();
        let written = leases.arena.write(first, bytes);
        let pages = to_page(written.div_ceil(leases.arena.page_size()));
        leases.free().pages.set_warm(Run { start: first, len: pages });
        written
    }

    #[inline]
    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// How many pages, from the first on, were mapped when they were taken.
    #[inline]
    pub(super) fn mapped(&self) -> u32 {
        self.pages.mapped
    }

    #[inline]
    pub(super) fn run(&self) -> Run {
        self.pages.run
    }

    #[inline]
    fn leases(&self) -> &Leases {
        &self.pool.0.leases
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases().release(self.pages);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("run", &self.run()).finish_non_exhaustive()
    }
}

fn to_page(page: usize) -> u32 {
    u32::try_from(page).expect("an arena has at most u32::MAX pages")
}

fn out_of_memory(stats: &PoolStats, want: u32) -> io::Error {
    let full = AtCapacity { in_use: stats.in_use, capacity: stats.capacity, want };
    io::Error::new(io::ErrorKind::OutOfMemory, full)
}

/// The pool has no such run of pages. Unlike a lack of memory in the system this is over once somebody
/// gives pages back.
#[derive(Debug)]
struct AtCapacity {
    in_use: u64,
    capacity: u64,
    want: u32,
}

impl fmt::Display for AtCapacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AtCapacity { in_use, capacity, want } = self;
        write!(
            f,
            "the pool is at its capacity: {in_use} of {capacity} bytes in use, no room for {want} pages \
             side by side; drop ropes or views, or make the pool with a larger capacity"
        )
    }
}

impl Error for AtCapacity {}

/// Whether the pool was at its capacity when this happened, so that it is worth waiting.
pub(crate) fn is_at_capacity(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<AtCapacity>())
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::Rope;

    fn filled(pool: &Pool, pages: usize) -> Rope {
        let mut rope = Rope::in_pool(pool);
        rope.reserve(pages * 4096).unwrap();
        rope.extend_from_slice(&vec![7; pages * 4096]);
        rope
    }

    #[test]
    fn where_memory_is_scarce_other_threads_have_none_at_hand() {
        let pool = Pool::options().capacity(1 << 20).create().unwrap();
        let _before = filled(&pool, 1);
        std::thread::scope(|scope| scope.spawn(|| drop(filled(&pool, 4))).join().unwrap());
        let leases = &pool.0.leases;
        let kept = (0..LANES).filter_map(|lane| leases.stash.kept(lane)).find(|kept| kept.pages.run.len > 0);
        let pages = kept.map(|kept| kept.pages);
        assert!(pages.is_some_and(|pages| (pages.run.len, pages.mapped) == (4, 4)), "{pages:?}");
        leases.free().scarce = true;
        let taken = leases.take(|free| free.take(1, 0)).unwrap();
        assert_eq!((taken.mapped, leases.at_hand()), (1, 0));
        leases.give(taken);
    }

    #[test]
    fn where_memory_is_scarce_pages_that_have_some_come_first() {
        let pool = Pool::options().capacity(1 << 20).create().unwrap();
        let leases = &pool.0.leases;
        // Of two warm pages in the next room the first one is taken again.
        let (_before, two) = (filled(&pool, 1), filled(&pool, 2));
        drop(two);
        let _one = filled(&pool, 1);
        leases.free().collect_all(&leases.stash);
        let takes: [fn(&mut Free) -> Option<Taken>; 3] =
            [|free| free.take(1, 0), |free| free.take_exact(1), |free| free.take_at(1, 1)];
        let where_taken = |scarce| {
            takes.map(|take| {
                let mut free = leases.free();
                free.scarce = scarce;
                let run = take(&mut free)?.run;
                assert!(free.give(run).is_none());
                Some(run.start)
            })
        };
        let two = where_taken(true)[0].unwrap();
        assert_eq!(where_taken(true), [Some(two), Some(two), None]);
        let [apart, exact, at] = where_taken(false);
        assert!(apart == exact && apart != Some(two) && at == Some(1));
    }
}
