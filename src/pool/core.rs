//! The layers put together: pages are allocated, grown, shared, committed and freed here.
//!
//! ```text
//!   allocate ─► cache ─┬─► capacity ─► runs           lock-free in the cache, else under one lock
//!   commit   ──────────┼─► pressure ─► arena          no lock while the kernel works
//!   free     ─► refs ──┴─► cache or runs ─► decay     the last reference frees
//! ```
//!
//! What is not on the way of a byte is in files of its own: `core/create.rs` makes a pool, `core/idle.rs` gives pages
//! back, `core/reserve.rs` keeps reservations and waiters, `core/spilled.rs` has what differs for pages of a file.

mod create;
mod idle;
mod reserve;
mod spilled;

use std::borrow::Cow;
use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::arena::Arena;
use super::background::Background;
use super::cache::{Cached, PageCache};
use super::capacity::{Capacity, Wakers};
use super::decay::Decay;
use super::options::PoolStats;
use super::refs::Refs;
use super::refused::{AtCapacity, Full, inherited};
use super::runs::{PageRun, Runs};
use super::spill::Spill;
use crate::limits::Limits;
use crate::sys::memory::{self, Table};
use crate::sys::pipe::Pipe;
use crate::sys::shown;

/// Shards of a pool: threads beyond that share theirs.
pub(super) const SHARDS: usize = 16;

/// Bytes in a page cache: what the largest first read asks for.
const CACHE_BYTES: usize = 256 << 10;

/// Extents that are allocated from a page cache between two looks at the clock.
const TICK: u32 = 64;

/// A pool's pages and all that is known of them.
pub(super) struct Core {
    pub(super) name: Cow<'static, str>,
    pub(super) arena: Arena,
    pub(super) refs: Refs<Table<AtomicU32>>,
    /// Of each shard.
    caches: [PageCache; SHARDS],
    state: Mutex<State>,
    pub(super) limits: &'static Limits,
    pub(super) zero_on_release: bool,
    background: Option<Background>,
    /// Pages beyond the capacity, in a pool of their own.
    pub(super) overflow: Option<Pool>,
    /// The file that the pages of this pool are written to.
    spill: Option<Arc<Spill>>,
    reduced: bool,
    pub(super) handover: bool,
    /// Of a pool for a handover: what is spliced into its memfd goes through it. `None` if there is no descriptor for it.
    pub(super) pipe: Mutex<Option<Pipe>>,
    pub(super) counters: Counters,
}

/// What ropes and views count, without the lock.
#[derive(Default)]
pub(super) struct Counters {
    /// Bytes that the next payload's first read should ask for; 0 before any has come.
    pub(super) first_read: AtomicU32,
    /// Bytes of the pages of segments that use little of them.
    pub(super) pinned: AtomicU64,
    /// Further bytes of ropes that may lie outside the pages; see [`Beside`](super::room::Beside).
    #[cfg(feature = "http-body")]
    pub(super) beside_left: AtomicU64,
    /// Bodies that are being received.
    #[cfg(feature = "http-body")]
    pub(super) receiving: AtomicU32,
    pub(super) fallbacks: AtomicU64,
    pub(super) bytes_copied: AtomicU64,
    pub(super) bytes_mapped: AtomicU64,
    pub(super) maps: AtomicU64,
}

/// In cache lines of its own: the holder of the lock writes to it, and the fields beside it are only read.
#[repr(align(128))]
struct State {
    runs: Runs,
    capacity: Capacity,
    decay: Decay,
    /// Allocated only while their memory is given back.
    decommitting: u32,
    /// Allocated and about to become resident.
    committing: u32,
    extents: u64,
    peak: u32,
    peak_resident: u32,
}

/// One of a pool's shards, and a reference to the pool: each thread counts its references in its own cache line.
#[repr(align(128))]
pub(super) struct Shard {
    pub(super) core: Arc<Core>,
    pub(super) index: usize,
}

/// Recycled memory that ropes receive into.
///
/// A pool is one sparse memfd, mapped once. Pages that a rope frees stay resident, so the next payload costs neither
/// page faults nor zeroing; after a while without use, or above a limit, they are given back to the system. A `Pool` is
/// a handle: clones share the memory, and ropes, views and [`Bytes`](bytes::Bytes) keep it alive after the last handle
/// is dropped.
///
/// Idle pages are given back in slices of at most 2 MiB, by the calls that free pages. A program that may fall silent
/// calls [`decay`](Pool::decay) when [`decay_timeout`](Pool::decay_timeout) says so, or asks for a
/// [thread](super::PoolOptions::background).
///
/// # Fork
///
/// A child process inherits no memory of a pool: its pages, and views of them, are not mapped there, so reading or
/// writing bytes that the parent received is a segmentation fault. Every call that needs the pool is an error of kind
/// [`Unsupported`](io::ErrorKind::Unsupported), and dropping ropes, views and pools does nothing. Make pools after the
/// last fork, for one after a daemon has detached itself. On other systems than Linux the child has a copy of the bytes.
///
/// # Examples
///
/// ```
/// use ropewalk::{Pool, Rope};
///
/// let pool = Pool::new()?;
/// let mut rope = Rope::in_pool(&pool);
/// rope.extend_from_slice(b"some bytes");
/// assert!(pool.stats().in_use > 0);
/// drop(rope);
/// assert_eq!(pool.stats().in_use, 0);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Pool {
    shard: Arc<Shard>,
    /// Of handles that the program holds: keeps the shards of all threads, so that ropes can be counted in theirs.
    shards: Option<Arc<[Arc<Shard>; SHARDS]>>,
}

impl Pool {
    /// # Errors
    ///
    /// When the system has no room for the thread of a spill file.
    pub(super) fn over(core: Core) -> io::Result<Pool> {
        let core = Arc::new(core);
        core.start_spilling()?;
        let shards =
            Arc::new(std::array::from_fn(|index| Arc::new(Shard { core: Arc::clone(&core), index })));
        Ok(Pool { shard: Arc::clone(&shards[shard_of_thread()]), shards: Some(shards) })
    }

    #[inline]
    pub(super) fn core(&self) -> &Core {
        &self.shard.core
    }

    #[inline]
    pub(super) fn shard(&self) -> &Arc<Shard> {
        &self.shard
    }

    /// A handle for a rope, counted in this thread's shard.
    #[inline]
    pub(crate) fn share(&self) -> Pool {
        let shard = self.shards.as_ref().map_or(&self.shard, |shards| &shards[shard_of_thread()]);
        Pool { shard: Arc::clone(shard), shards: None }
    }

    pub(super) fn is_same(&self, other: &Pool) -> bool {
        Arc::ptr_eq(&self.shard.core, &other.shard.core)
    }
}

/// How many pages to allocate.
#[derive(Clone, Copy)]
pub(super) enum Want {
    /// 1 to `.0`, for a rope that holds `.1`.
    UpTo(u32, u32),
    /// 1 to so many, for a rope that passes on what it receives.
    Packed(u32),
    /// In one run.
    Exactly(u32),
    /// 1 to so many that are resident, for when memory is short.
    Resident(u32),
}

impl Want {
    #[inline]
    pub(super) fn pages(self) -> u32 {
        let (Want::UpTo(pages, _) | Want::Packed(pages) | Want::Exactly(pages) | Want::Resident(pages)) =
            self;
        pages
    }
}

impl Core {
    #[inline]
    pub(super) fn spill(&self) -> Option<&Arc<Spill>> {
        self.spill.as_ref()
    }

    pub(super) fn bytes(&self, pages: u32) -> u64 {
        u64::from(pages) * self.arena.page_size() as u64
    }

    /// Pages for so many bytes, at least one.
    #[inline]
    pub(super) fn pages(&self, bytes: usize) -> u32 {
        let pages = bytes.div_ceil(self.arena.page_size());
        u32::try_from(pages).unwrap_or(u32::MAX).max(1)
    }

    /// # Errors
    ///
    /// In a child of the process that made the pool, where nothing of it is mapped.
    #[inline]
    pub(super) fn check_process(&self) -> io::Result<()> {
        if self.arena.is_inherited() { Err(inherited()) } else { Ok(()) }
    }

    /// All zero in a child of the process that made the pool.
    pub(super) fn stats(&self) -> PoolStats {
        if self.arena.is_inherited() {
            return PoolStats::default();
        }
        let state = self.state();
        let cached = self.cached();
        let used = state.used().saturating_sub(cached);
        let extents: u32 = self.caches.iter().map(|cache| cache.peek().extents).sum();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let spill = self.overflow.as_ref().map(|overflow| overflow.core().stats()).unwrap_or_default();
        PoolStats {
            spilled: spill.in_use,
            spill_capacity: spill.capacity,
            capacity: self.bytes(state.capacity.limit()),
            in_use: self.bytes(used),
            low: self.bytes(state.decay.low(used)),
            pinned: load(&self.counters.pinned) + spill.pinned,
            reserved: self.bytes(state.capacity.reserved()),
            warm: self.bytes(state.runs.resident_free() + cached),
            resident: self.bytes(state.runs.resident()),
            peak: self.bytes(state.peak),
            peak_resident: self.bytes(state.peak_resident),
            page_size: self.arena.page_size() as u64,
            backing: self.arena.backing(),
            commit: self.arena.way_to_commit(),
            keeps_memory: self.arena.keeps_memory(),
            reduced: self.reduced || spill.reduced,
            extents: state.extents + u64::from(extents),
            waiting: state.capacity.waiting() as u64,
            fallbacks: load(&self.counters.fallbacks),
            bytes_copied: load(&self.counters.bytes_copied),
            bytes_mapped: load(&self.counters.bytes_mapped),
            maps: load(&self.counters.maps),
        }
    }

    /// Allocates pages: `reserved` ones first, which it lowers. Returns them and how many, from the first on, are
    /// resident.
    #[inline(never)]
    pub(super) fn allocate(
        &self,
        shard: usize,
        want: Want,
        reserved: &mut u32,
    ) -> io::Result<(PageRun, u32)> {
        self.check_process()?;
        let mut state = self.state();
        self.flush(&mut state, shard);
        // A rope that is alone needs all pages from the first on to be contiguous.
        if self.is_cached(state.runs.allocated()) {
            self.flush_all(&mut state);
        }
        let run = state.allocate(want, *reserved).or_else(|| {
            self.flush_all(&mut state);
            state.allocate(want, *reserved)
        });
        let Some(run) = run else {
            let full = self.at_capacity(&state, want);
            drop(state);
            let freed = self.spill.as_ref().is_some_and(|spill| spill.wait_for_frees());
            return if freed { self.allocate(shard, want, reserved) } else { Err(full) };
        };
        state.extents += 1;
        let resident = state.allocated(run, reserved);
        drop(state);
        self.prepare_behind(run);
        Ok((run, resident))
    }

    /// Allocates up to `want` pages, or exactly so many, from page `at` on. Returns how many, and how many of them from
    /// the first on are resident.
    #[inline(never)]
    pub(super) fn grow(&self, shard: usize, at: u32, want: Want, reserved: &mut u32) -> (u32, u32) {
        if self.arena.is_inherited() {
            return (0, 0);
        }
        let mut state = self.state();
        self.flush(&mut state, shard);
        if state.runs.is_allocated(at) {
            let holder = self.caches.iter().position(|cache| cache.peek().run.start == at);
            holder.into_iter().for_each(|shard| self.flush(&mut state, shard));
        }
        let allowed = state.allowed(*reserved);
        let grown = match want {
            Want::UpTo(want, held) => state.runs.grow(at, want.min(allowed), held),
            Want::Exactly(want) => {
                if want <= allowed && state.runs.grow_exact(at, want) {
                    want
                } else {
                    0
                }
            }
            Want::Packed(_) | Want::Resident(_) => 0,
        };
        if grown == 0 {
            return (0, 0);
        }
        let run = PageRun::new(at, grown);
        let resident = state.allocated(run, reserved);
        drop(state);
        self.prepare_behind(run);
        (grown, resident)
    }

    /// The cache of a shard, unless the pages have to come out of a reservation, or this is a child process.
    #[inline]
    pub(super) fn cache(&self, shard: usize, reserved: u32) -> Option<&PageCache> {
        (reserved == 0 && !self.arena.is_inherited()).then_some(&self.caches[shard])
    }

    /// Gives the pages of `run`, which is the caller's, memory, and page table entries if they are to be touched. Idle
    /// pages that would exceed the capacity together with them are given back first: O(log n) and a system call for each
    /// run of those, at most as many pages as get memory.
    pub(super) fn commit(&self, run: PageRun, touched: bool) -> io::Result<()> {
        self.check_process()?;
        let (rest, excess) = {
            let mut state = self.state();
            let resident = state.runs.resident_prefix(run);
            let rest = PageRun::new(run.start + resident, run.len - resident);
            state.committing += rest.len;
            (rest, state.excess())
        };
        if rest.len == 0 {
            return Ok(());
        }
        if excess > 0 && !self.arena.keeps_memory() {
            // What the kernel does not take back stays resident and usable.
            let _ = self.give_back(excess, usize::MAX);
        }
        let committed = self.commit_cold(rest, touched);
        let mut state = self.state();
        state.committing -= rest.len;
        if committed.is_ok() {
            state.runs.set_resident(rest);
            state.peak_resident = state.peak_resident.max(state.runs.resident());
        }
        committed
    }

    fn commit_cold(&self, run: PageRun, touched: bool) -> io::Result<()> {
        self.admit(run)?;
        let committed = if touched { self.arena.commit(run) } else { self.arena.commit_unmapped(run) };
        if let (Err(_), Some(spill)) = (&committed, &self.spill) {
            spill.withdraw(run.len);
        }
        committed
    }

    /// Frees pages that have no owner; those of them that were reserved are reserved `again`.
    #[inline]
    pub(super) fn free(self: &Arc<Self>, shard: usize, run: PageRun, resident: u32, again: u32) {
        debug_assert!(run.len > 0);
        if resident < run.len || again > 0 || self.wants_background() || !self.caches[shard].free(run) {
            self.free_shared(shard, run, again);
        }
    }

    #[inline(never)]
    fn free_shared(self: &Arc<Self>, shard: usize, run: PageRun, again: u32) {
        if self.arena.is_inherited() {
            return;
        }
        if let Some(spill) = &self.spill {
            return self.free_spilled(spill, run);
        }
        if self.zero_on_release {
            let resident = self.state().runs.resident_prefix(run);
            self.arena.zero(PageRun::new(run.start, resident));
        }
        let due = self.change(|state| {
            self.flush(state, shard);
            self.tick(state, memory::now_coarse());
            state.runs.free(run);
            state.capacity.reserve_again(again);
            self.due(state)
        });
        // What the kernel does not take back stays resident and usable.
        let _ = self.give_back_slice(due);
        if self.wants_background() {
            self.start_background();
        }
    }

    /// Marks the pages in a cache as free.
    fn flush(&self, state: &mut State, shard: usize) {
        state.uncache(self.caches[shard].flush());
    }

    fn flush_all(&self, state: &mut State) {
        (0..SHARDS).for_each(|shard| self.flush(state, shard));
    }

    /// Returns whether all `allocated` pages are in caches.
    fn is_cached(&self, allocated: u32) -> bool {
        let most = pages_of((SHARDS * CACHE_BYTES) as u64, self.arena.page_size() as u64);
        allocated > 0 && allocated <= most && allocated == self.cached()
    }

    fn at_capacity(&self, state: &State, want: Want) -> io::Error {
        let available = state.capacity.available(state.used());
        let what = match want {
            Want::Exactly(pages) if pages <= available => Full::Fragmented,
            _ if self.spill.is_some() => Full::Spill,
            _ => Full::Pool,
        };
        AtCapacity {
            in_use: self.bytes(state.used() + state.capacity.reserved()),
            capacity: self.bytes(state.capacity.limit()),
            requested: self.bytes(want.pages()),
            what,
        }
        .into()
    }

    /// Returns whether the thread that gives idle pages back was asked for and does not run.
    #[inline]
    fn wants_background(&self) -> bool {
        self.background.as_ref().is_some_and(|background| !background.runs())
    }

    /// Panics if the layers do not fit each other. Call while no other thread uses the pool.
    #[cfg(any(test, fuzzing))]
    pub(super) fn assert_invariants(&self) {
        let state = self.state();
        state.runs.assert_invariants();
        state.capacity.assert_invariants(state.used());
        assert_eq!((state.decommitting, state.committing), (0, 0));
        let lost =
            (0..state.runs.total()).find(|&page| self.refs.is_shared(page) && !state.runs.is_allocated(page));
        assert_eq!(lost, None, "a free page has references");
        for page in self.caches.iter().flat_map(|cache| cache.peek().run.range()) {
            assert!(state.runs.is_allocated(page) && !self.refs.is_shared(page), "page {page} is cached");
        }
    }

    /// Pages in all caches.
    pub(super) fn cached(&self) -> u32 {
        self.caches.iter().map(|cache| cache.peek().run.len).sum()
    }

    /// Nothing panics while it holds this lock, so it cannot be poisoned.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // In a child the thread does not exist, and a lock may be held for good.
        if let Some(spill) = self.spill.as_ref().filter(|_| !self.arena.is_inherited()) {
            spill.close();
            shown::hide(self.arena.addresses());
        }
    }
}

impl State {
    /// Pages that count towards the capacity.
    fn used(&self) -> u32 {
        self.runs.allocated() - self.decommitting
    }

    /// Idle pages that exceed the capacity, once those that are about to become resident are.
    fn excess(&self) -> u32 {
        let resident = self.runs.resident() - self.decommitting + self.committing;
        resident.saturating_sub(self.capacity.limit())
    }

    /// Pages that a rope with so many reserved ones may allocate.
    fn allowed(&self, reserved: u32) -> u32 {
        self.capacity.available(self.used()) + reserved
    }

    fn allocate(&mut self, want: Want, reserved: u32) -> Option<PageRun> {
        let allowed = self.allowed(reserved);
        match want {
            Want::UpTo(..) | Want::Packed(_) | Want::Resident(_) if allowed == 0 => None,
            Want::UpTo(want, held) => self.runs.allocate(want.min(allowed), held),
            Want::Packed(want) => self.runs.allocate_packed(want.min(allowed)),
            Want::Exactly(want) if want > allowed => None,
            Want::Exactly(want) => self.runs.allocate_exact(want),
            Want::Resident(want) => self.runs.allocate_resident(want.min(allowed)),
        }
    }

    /// Notes that pages were allocated, reserved ones first; returns how many, from the first on, are resident.
    fn allocated(&mut self, run: PageRun, reserved: &mut u32) -> u32 {
        let drawn = run.len.min(*reserved);
        *reserved -= drawn;
        self.capacity.unreserve(drawn);
        self.decay.note(self.runs.resident_free());
        self.peak = self.peak.max(self.used());
        self.runs.resident_prefix(run)
    }

    fn uncache(&mut self, Cached { run, extents }: Cached) {
        if run.len > 0 {
            self.runs.free(run);
        }
        self.extents += u64::from(extents);
    }

    fn serve(&mut self) -> Wakers {
        let used = self.used();
        self.capacity.serve(used)
    }
}

/// Pages for so many bytes; as many as there can be for more.
#[inline]
fn pages_of(bytes: u64, page: u64) -> u32 {
    u32::try_from(bytes.div_ceil(page)).unwrap_or(u32::MAX)
}

/// This thread's shard.
#[inline]
pub(super) fn shard_of_thread() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    // A constant without drop glue: read without a check whether it was initialised.
    thread_local!(static SHARD: Cell<usize> = const { Cell::new(SHARDS) });
    let shard = SHARD.get();
    if shard < SHARDS {
        return shard;
    }
    SHARD.set(THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS);
    SHARD.get()
}
