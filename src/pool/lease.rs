//! Who owns which pages: a count on each of them, and the free ones behind a lock.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::arena::{Arena, Backing};
use super::counts::Counts;
use super::line::Line;
use super::pages::{Pages, Run, Taken};
use super::{ENOUGH, Pool, PoolOptions, PoolStats, lane};
use crate::event::event;
use crate::sys::memory;

/// The clock is asked once in so many times that pages are given back: it costs more than all the rest.
const TICK: u32 = 16;

/// All pages of a pool.
pub(super) struct Leases {
    arena: Arena,
    counts: Counts,
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
    /// `ENOUGH` in pages.
    enough: u32,
    /// `lane::LEAST` in pages.
    least_lane: u32,
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
    /// How often pages were given back.
    gives: u32,
    line: Line,
}

/// Some neighbouring pages of a pool. Each page is given back when its last lease goes.
pub(super) struct Lease {
    pool: Pool,
    run: Run,
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
        let now = Instant::now();
        Ok(Leases {
            counts: Counts::new(total),
            free: Mutex::new(Free {
                pages: Pages::new(total),
                enough: to_page(ENOUGH.div_ceil(size)),
                least_lane: to_page(lane::LEAST.div_ceil(size)),
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
        PoolStats {
            capacity: bytes(free.pages.total()),
            in_use: bytes(free.pages.in_use()),
            warm: bytes(free.pages.warm_free()),
            peak: bytes(free.peak),
            page_size: self.arena.page_size() as u64,
            backing: self.arena.backing(),
            reduced: self.reduced,
            extents: free.extents,
            waiting: free.line.len() as u64,
            ..PoolStats::default()
        }
    }

    /// Takes pages by one of the ways of [`Pages`], for so many new extents. Their first lease needs no count.
    fn take(&self, take: impl FnOnce(&mut Free) -> Option<Taken>, extents: u64) -> Option<Taken> {
        let mut free = self.free();
        let taken = take(&mut free)?;
        free.extents += extents;
        free.idle = free.idle.min(free.pages.warm_free());
        free.peak = free.peak.max(free.pages.in_use());
        Some(taken)
    }

    /// Counts one lease less on each page and gives back those that have none left.
    fn release(&self, run: Run) {
        self.counts.release(run, |run| self.give(run));
    }

    fn give(&self, run: Run) {
        if self.zero_on_release {
            let written = self.free().pages.warm_prefix(run);
            self.arena.zero(Run { start: run.start, len: written });
        }
        let (surplus, waker) = {
            let mut free = self.free();
            let stale = free.tick(self.decay);
            let waker = free.give(run);
            (stale.max(free.pages.warm_free().saturating_sub(self.retain)), waker)
        };
        waker.into_iter().for_each(Waker::wake);
        self.give_back_quietly(surplus);
    }

    /// Gives back what has been idle for as long as `decay`.
    pub(super) fn give_back_idle(&self) {
        let surplus = self.free().surplus(Instant::now(), self.decay);
        self.give_back_quietly(surplus);
    }

    fn give_back_quietly(&self, pages: u32) {
        if pages > 0 {
            // What the kernel would not take back stays warm and usable: nothing is lost.
            let _given = self.give_back(pages);
            event!(trace, bytes = ?_given, "idle memory given back");
        }
    }

    /// Gives up to `pages` warm free pages, the highest first, back to the system.
    pub(super) fn give_back(&self, pages: u32) -> io::Result<u64> {
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
    }

    /// Looks at the line of those who wait, and at how many bytes are free.
    pub(super) fn with_line<T>(&self, look: impl FnOnce(&mut Line, u64) -> T) -> T {
        let mut free = self.free();
        let pages = free.pages.total() - free.pages.in_use();
        look(&mut free.line, self.bytes(pages))
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
    fn take(&mut self, want: u32) -> Option<Taken> {
        if self.scarce {
            return self.pages.take(want, 1);
        }
        lane::take(&mut self.pages, want, self.enough, self.least_lane)
    }

    /// Returns whom to wake, once the lock is released.
    #[must_use]
    fn give(&mut self, run: Run) -> Option<Waker> {
        self.pages.give(run);
        self.line.given()
    }

    /// Looks at the clock now and then, before pages are given.
    fn tick(&mut self, decay: Duration) -> u32 {
        self.gives = self.gives.wrapping_add(1);
        if self.gives % TICK != 0 {
            return 0;
        }
        let now = Instant::now();
        let surplus = self.surplus(now, decay);
        self.last_given = now;
        surplus
    }

    /// How many warm pages nobody has wanted for as long as `decay`. Call before pages are given.
    fn surplus(&mut self, now: Instant, decay: Duration) -> u32 {
        if now.saturating_duration_since(self.last_given) >= decay {
            return self.pages.warm_free();
        }
        if now.saturating_duration_since(self.period) < decay {
            return 0;
        }
        self.period = now;
        std::mem::replace(&mut self.idle, self.pages.warm_free())
    }
}

impl Lease {
    /// Up to `want` pages and how many of them, from the first on, are mapped.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` when the pool is at its capacity.
    pub(super) fn take(pool: &Pool, want: u32) -> io::Result<(Lease, u32)> {
        Self::with(pool, want, |free| free.take(want))
    }

    /// Exactly `want` pages, side by side.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` when no such run is free.
    pub(super) fn take_exact(pool: &Pool, want: u32) -> io::Result<(Lease, u32)> {
        Self::with(pool, want, |free| free.pages.take_exact(want))
    }

    fn with(
        pool: &Pool,
        want: u32,
        take: impl FnOnce(&mut Free) -> Option<Taken>,
    ) -> io::Result<(Lease, u32)> {
        let shared = &pool.0;
        let taken = shared.leases.take(take, 1).ok_or_else(|| out_of_memory(&shared.leases.stats(), want))?;
        Ok((Lease { pool: pool.share(), run: taken.run }, taken.mapped))
    }

    /// Takes up to `want` of the pages that follow; returns how many, and how many of those, from the
    /// first on, are mapped.
    pub(super) fn grow(&mut self, want: u32, exactly: bool) -> (u32, u32) {
        let end = self.run.end();
        let take = |Free { pages, enough, .. }: &mut Free| {
            if exactly { pages.take_exact_at(end, want) } else { pages.take_at(end, want, *enough) }
        };
        let taken = self.leases().take(take, 0);
        let Some(Taken { run, mapped }) = taken else { return (0, 0) };
        self.run.len += run.len;
        (run.len, mapped)
    }

    /// Gives back all pages from page `end` of the arena on, of which this must be the only lease.
    pub(super) fn truncate(&mut self, end: u32) {
        let keep = end.clamp(self.run.start, self.run.end()) - self.run.start;
        let rest = Run { start: self.run.start + keep, len: self.run.len - keep };
        self.run.len = keep;
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
        let front = Run { start: self.run.start, len: front_end - self.run.start };
        self.run = Run { start: rest_start, len: self.run.end() - rest_start };
        Lease { pool: self.pool.share(), run: front }
    }

    /// A further lease of the pages before `offset` bytes into the arena.
    pub(super) fn share_to(&self, offset: usize) -> Lease {
        let end = to_page(offset.div_ceil(self.leases().arena.page_size()));
        let run = Run { start: self.run.start, len: end - self.run.start };
        self.leases().counts.add(run);
        Lease { pool: self.pool.share(), run }
    }

    /// Maps pages `first..end` of the arena, which are this lease's, and gives them memory if need be.
    pub(super) fn commit(&self, first: u32, end: u32) -> io::Result<()> {
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

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn run(&self) -> Run {
        self.run
    }

    fn leases(&self) -> &Leases {
        &self.pool.0.leases
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases().release(self.run);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("run", &self.run).finish_non_exhaustive()
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
