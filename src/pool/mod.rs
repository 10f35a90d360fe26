//! Floor 1: memory. One arena of recycled pages, handed out as extents.
//!
//! ```text
//! arena.rs    one memfd, mapped once            (or anonymous memory)
//! pages.rs    which pages are taken, which warm (pure)
//! lane.rs     where new extents begin
//! stash.rs    what a lane has at hand
//! counts.rs   how many leases each page belongs to
//! lease.rs    who owns which pages, and what becomes of those that nobody owns
//! handle.rs   the pool itself, shared by threads
//! bounce.rs   the way into pages that have no memory yet
//! line.rs     who waits for pages
//! extent.rs   a run of pages being filled, and the pieces cut off it
//! ```

mod arena;
mod bounce;
#[cfg(test)]
mod check;
mod counts;
mod extent;
mod handle;
mod lane;
mod lease;
mod line;
mod pages;
mod stash;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::event::event;
use crate::sys::memory;
pub use arena::Backing;
use bounce::Bounces;
pub(crate) use extent::{Extent, PIECE};
use handle::Handle;
use lease::Leases;
pub(crate) use lease::is_at_capacity;
pub use line::Waiting;

/// Recycled memory that ropes receive into.
///
/// A pool is one sparse memfd, mapped once. Pages that a rope gives back stay resident, so the next
/// payload costs neither page faults nor zeroing; after a while without use, or above a limit, they
/// go back to the system. A `Pool` is a handle: clones share the memory, and ropes, views and
/// [`Bytes`](bytes::Bytes) keep it alive after the last handle is gone.
///
/// Nothing runs in the background: idle memory is given back during the calls that use the pool, and
/// by [`stats`](Pool::stats) and [`trim`](Pool::trim).
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
pub struct Pool(Handle<Shared>);

/// What all handles, extents and pieces of one pool share.
struct Shared {
    leases: Leases,
    bounces: Bounces,
    /// What the next payload's first read had better ask for.
    first_read: AtomicU32,
    /// `zero_on_release`, once more: a small message looks at this and at `first_read`, and at nothing else here.
    zeroes: bool,
    fallbacks: AtomicU64,
    bytes_copied: AtomicU64,
    bytes_mapped: AtomicU64,
    maps: AtomicU64,
}

impl Pool {
    /// A pool with the [default options](PoolOptions).
    ///
    /// # Errors
    ///
    /// As for [`PoolOptions::create`].
    ///
    /// # Examples
    ///
    /// ```
    /// let pool = ropewalk::Pool::new()?; // one for the program
    /// assert_eq!(pool.stats().in_use, 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new() -> io::Result<Pool> {
        Self::options().create()
    }

    /// Options for a pool of your own measure.
    ///
    /// # Examples
    ///
    /// ```
    /// let pool = ropewalk::Pool::options().capacity(1 << 30).create()?;
    /// # assert_eq!(pool.stats().capacity, 1 << 30);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn options() -> PoolOptions {
        PoolOptions::default()
    }

    /// What the pool holds and has done so far. Gives back pages that have been idle for too long first.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// let pool = Pool::new()?;
    /// let mut rope = Rope::in_pool(&pool);
    /// rope.extend_from_slice(&[7; 10_000]);
    /// let stats = pool.stats();
    /// assert!(stats.in_use >= 10_000 && stats.in_use <= stats.capacity);
    /// assert_eq!(stats.fallbacks, 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let leases = &self.0.leases;
        leases.give_back_idle();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut stats = leases.stats();
        stats.fallbacks = load(&self.0.fallbacks);
        stats.bytes_copied = load(&self.0.bytes_copied);
        stats.bytes_mapped = load(&self.0.bytes_mapped);
        stats.maps = load(&self.0.maps);
        stats
    }

    /// Gives all memory that no rope, view or `Bytes` uses back to the system; returns how many bytes
    /// that were.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to punch a hole; what was not given back stays usable.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// let pool = Pool::new()?;
    /// Rope::in_pool(&pool).extend_from_slice(&[7; 100_000]);
    /// assert!(pool.trim()? >= 100_000);
    /// assert_eq!(pool.stats().warm, 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn trim(&self) -> io::Result<u64> {
        self.0.bounces.drop_idle();
        let trimmed = self.0.leases.trim()?;
        event!(debug, bytes = trimmed, "pool trimmed");
        Ok(trimmed)
    }

    /// Panics where the parts do not fit each other; for tests and fuzzers, while nobody else uses the pool.
    #[cfg(any(test, fuzzing))]
    pub fn assert_invariants(&self) {
        self.0.leases.assert_invariants();
    }

    /// A handle for a rope or a lease: as long as there are others, threads do not get in each other's way with these.
    #[inline]
    pub(crate) fn share(&self) -> Pool {
        Pool(self.0.share(lane::number()))
    }

    /// Bytes per page: the machine's, or a huge one's.
    #[inline]
    pub(crate) fn page_size(&self) -> usize {
        self.0.leases.arena().page_size()
    }

    /// Where in the arena these bytes lie, if they lie there.
    pub(crate) fn offset_of(&self, bytes: &[u8]) -> Option<usize> {
        self.0.leases.arena().offset_of(bytes)
    }

    /// The address of a byte of the arena, with provenance for all of it.
    #[inline]
    pub(crate) fn address_of(&self, offset: usize) -> std::ptr::NonNull<u8> {
        self.0.leases.arena().at(offset)
    }

    /// Where in the memfd a byte of the arena lies.
    pub(crate) fn in_file(&self, offset: usize) -> usize {
        self.0.leases.arena().in_file(offset)
    }

    /// The memfd, unless the arena had to be anonymous.
    pub(crate) fn file(&self) -> Option<&Arc<File>> {
        self.0.leases.arena().file()
    }

    /// How many bytes the first read of a payload had better ask for; 0 before any has come.
    #[inline]
    pub(crate) fn first_read(&self) -> u32 {
        self.0.first_read.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_first_read(&self, bytes: u32) {
        // Most payloads are like the one before, and a store would take the line from other processors.
        if self.first_read() != bytes {
            self.0.first_read.store(bytes, Ordering::Relaxed);
        }
    }

    /// Whether nothing that was received may stay in memory.
    #[inline]
    pub(crate) fn zeroes(&self) -> bool {
        self.0.zeroes
    }

    /// A buffer to read into when the pages to be filled are cold; `None` if those are to be committed.
    pub(crate) fn take_bounce(&self) -> Option<Extent> {
        // A page that is written to without a map is never a huge one.
        let small = self.page_size() == memory::page_size();
        self.file().filter(|_memfd| small).and_then(|_memfd| self.0.bounces.take(self.zeroes()))
    }

    pub(crate) fn give_bounce(&self, bounce: Extent) {
        self.0.bounces.give(bounce);
    }

    /// Notes that cold pages could not be written, so that they are committed from now on.
    pub(crate) fn refuse_bounce(&self) {
        self.count_fallback();
        self.0.bounces.refuse();
    }

    /// Notes that memory came from elsewhere because the pool had none.
    pub(crate) fn count_fallback(&self) {
        self.0.fallbacks.fetch_add(1, Ordering::Relaxed);
        event!(debug, "no room in the pool, memory taken from the heap");
    }

    /// Notes what a view cost.
    pub(crate) fn count_view(&self, copied: usize, mapped: usize, maps: usize) {
        self.0.bytes_copied.fetch_add(copied as u64, Ordering::Relaxed);
        self.0.bytes_mapped.fetch_add(mapped as u64, Ordering::Relaxed);
        self.0.maps.fetch_add(maps as u64, Ordering::Relaxed);
        event!(trace, copied, mapped, maps, "rope finalised");
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pool").field(&self.0.leases.stats()).finish()
    }
}

/// How a [`Pool`] is to be made, in the manner of [`std::fs::OpenOptions`].
///
/// # Examples
///
/// ```
/// use ropewalk::Pool;
/// use std::time::Duration;
///
/// let pool = Pool::options()
///     .capacity(64 << 20)
///     .retain(16 << 20)
///     .decay(Duration::from_secs(1))
///     .create()?;
/// assert_eq!(pool.stats().capacity, 64 << 20);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct PoolOptions {
    capacity: u64,
    retain: u64,
    decay: Duration,
    huge_pages: bool,
    zero_on_release: bool,
}

impl Default for PoolOptions {
    fn default() -> PoolOptions {
        PoolOptions {
            capacity: crate::sys::pressure::memory_limit(),
            retain: u64::MAX,
            decay: Duration::from_secs(10),
            huge_pages: false,
            zero_on_release: false,
        }
    }
}

impl PoolOptions {
    /// Most bytes that all ropes together may hold, rounded up to whole pages. A receive beyond it is
    /// an error of kind [`OutOfMemory`](io::ErrorKind::OutOfMemory) and loses nothing.
    ///
    /// Default: the machine's physical memory, or less where a control group allows less. Only address space is set aside, not memory.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    /// use std::io::ErrorKind;
    ///
    /// let pool = Pool::options().capacity(1 << 20).create()?;
    /// let mut rope = Rope::in_pool(&pool);
    /// assert_eq!(rope.reserve(2 << 20).unwrap_err().kind(), ErrorKind::OutOfMemory);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn capacity(mut self, bytes: u64) -> PoolOptions {
        self.capacity = bytes;
        self
    }

    /// Most bytes kept resident though nobody uses them; what is given back beyond that goes to the
    /// system at once. Default: no limit but [`decay`](PoolOptions::decay).
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// let pool = Pool::options().retain(0).create()?;
    /// Rope::in_pool(&pool).extend_from_slice(&[7; 100_000]);
    /// assert_eq!(pool.stats().warm, 0); // the system has it back already
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn retain(mut self, bytes: u64) -> PoolOptions {
        self.retain = bytes;
        self
    }

    /// How long memory stays resident without being used. Default: 10 seconds.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::Pool;
    /// use std::time::Duration;
    ///
    /// // A burst a minute finds its memory where it was.
    /// let pool = Pool::options().decay(Duration::from_secs(90)).create()?;
    /// # drop(pool);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn decay(mut self, after: Duration) -> PoolOptions {
        self.decay = after;
        self
    }

    /// Asks for transparent huge pages (`MADV_HUGEPAGE`) and makes them the pool's pages: 2 MiB on x86-64.
    /// Default: no. The first payloads of a process, whose pages are cold, cost less then. But a rope holds
    /// whole pages: this is for payloads of many MiB.
    ///
    /// Whether shared memory gets any is the system's choice, and *never* by default: where
    /// `/sys/kernel/mm/transparent_hugepage/shmem_enabled` says so, this does nothing
    /// ([`PoolStats::page_size`] tells). The administrator can say `advise`.
    ///
    /// # Examples
    ///
    /// ```
    /// let pool = ropewalk::Pool::options().huge_pages(true).create()?;
    /// if pool.stats().page_size < 2 << 20 {
    ///     eprintln!("no huge pages: is shmem_enabled `advise`?");
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn huge_pages(mut self, ask: bool) -> PoolOptions {
        self.huge_pages = ask;
        self
    }

    /// Overwrites with zeros what ropes of this pool held, pages and heap, when it is given back. Default:
    /// no. Recycled pages are never readable through this crate before they are filled again; this is for
    /// those who also want old bytes gone from memory. What the program itself [pushes](crate::Rope::push)
    /// or copies is its own affair. Costs one pass over all that was received.
    ///
    /// # Examples
    ///
    /// ```
    /// let pool = ropewalk::Pool::options().zero_on_release(true).create()?;
    /// # drop(pool);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn zero_on_release(mut self, zero: bool) -> PoolOptions {
        self.zero_on_release = zero;
        self
    }

    /// memfd_create(2) and mmap(2): makes the pool.
    ///
    /// Where a memfd is forbidden or too many files are open the pool is made of anonymous memory;
    /// where so large a reservation is refused (`RLIMIT_AS`, `RLIMIT_FSIZE`) it is smaller.
    /// [`Pool::stats`] tells.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a capacity of 0 or of more than 2³² pages; else the kernel's refusal of even
    /// the smallest arena, 1 MiB.
    ///
    /// # Examples
    ///
    /// ```
    /// let pool = ropewalk::Pool::options().create()?;
    /// if pool.stats().reduced {
    ///     eprintln!("the kernel refused so large a pool: {:?}", pool.stats());
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn create(self) -> io::Result<Pool> {
        let leases = Leases::new(&self)?;
        let zeroes = self.zero_on_release;
        leases.announce();
        Ok(Pool(Handle::new(Shared {
            leases,
            bounces: Bounces::default(),
            first_read: AtomicU32::new(0),
            zeroes,
            fallbacks: AtomicU64::new(0),
            bytes_copied: AtomicU64::new(0),
            bytes_mapped: AtomicU64::new(0),
            maps: AtomicU64::new(0),
        })))
    }
}

/// What a [`Pool`] holds and has done. Sizes are in bytes.
///
/// # Examples
///
/// ```
/// let stats = ropewalk::Pool::new()?.stats();
/// println!("{} of {} bytes in use", stats.in_use, stats.capacity);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Most bytes that ropes may hold; smaller than asked for where the kernel refused the reservation.
    pub capacity: u64,
    /// Held by ropes, views and `Bytes`, in whole pages.
    pub in_use: u64,
    /// Resident, held by nobody, and handed out first. Of it, each thread keeps up to 256 KiB at hand for
    /// its next payloads of that size, until somebody else has need of it.
    pub warm: u64,
    /// The most that was ever in use, what threads had [at hand](PoolStats::warm) included.
    pub peak: u64,
    /// Of a page; ropes hold whole pages.
    pub page_size: u64,
    /// What the pages are made of.
    pub backing: Backing,
    /// Whether the kernel refused a memfd or a reservation of the size asked for.
    pub reduced: bool,
    /// Runs of pages handed out so far.
    pub extents: u64,
    /// How often memory came from the heap because the pool had none to give.
    pub fallbacks: u64,
    /// Bytes that views copied.
    pub bytes_copied: u64,
    /// Bytes that views mapped.
    pub bytes_mapped: u64,
    /// Maps that views made.
    pub maps: u64,
    /// How many [wait for room](Pool::wait_for_room) now.
    pub waiting: u64,
}
