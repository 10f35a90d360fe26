//! Floor 1: memory. One arena of recycled pages, handed out in runs.
//!
//! ```text
//! arena.rs       backing and mapping of pages: memfd, or anonymous
//! runs.rs        which pages are free, which are resident   (pure)
//! refs.rs        reference counts
//! cache.rs       page cache of a shard
//! decay.rs       when idle pages are given back             (pure)
//! background.rs  by whom, if the program makes no calls
//! capacity.rs    limits, reservations, waiters              (pure)
//! core.rs        the layers put together: allocate, grow, commit, free; core/ has what is not on the way of a byte
//! page_ref.rs    a counted reference to a run of pages
//! refused.rs     the errors with which a pool refuses
//! handover.rs    the private pool of a rope for another process
//! own_file.rs    the private pool of a rope that becomes a file
//! options.rs     what a pool is asked for, and what it tells
//! spill.rs       pages beyond the capacity, and the thread that writes them to a file
//! room.rs        reserved room, and the future that yields it
//! mod.rs         the public methods: no logic
//! ```

mod arena;
mod background;
mod cache;
mod capacity;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // a few pages
mod check;
mod core;
mod decay;
mod handover;
mod options;
mod own_file;
mod page_ref;
mod refs;
mod refused;
mod room;
mod runs;
mod spill;
mod wake;

use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use self::core::Core;
pub use self::core::Pool;
use crate::event::event;
use crate::limits::Limits;
pub use arena::{Backing, Commit};
pub use options::{PoolOptions, PoolStats};
pub(crate) use page_ref::PageRef;
pub(crate) use refused::is_at_capacity;
#[cfg(feature = "http-body")]
pub(crate) use room::{Beside, Receiving};
pub use room::{Room, RoomFuture};
pub(crate) use spill::SpillWait;

impl Pool {
    /// Makes a pool with the [default options](PoolOptions).
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

    /// Returns the default options, to be changed.
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

    /// Returns the pool's [name](PoolOptions::name). O(1).
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core().name
    }

    /// Gives back a [slice](Pool::decay) of idle pages, then returns what the pool holds and has done so far.
    ///
    /// All zero in a child of the process that made the pool.
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
        // What the kernel does not take back is counted as warm.
        let _ = self.core().decay();
        self.core().stats()
    }

    /// fallocate(2) with `FALLOC_FL_PUNCH_HOLE`: gives all memory that no rope, view or `Bytes` uses back to the system;
    /// returns how many bytes of memory. Linear in the arena's pages and in the runs that go.
    ///
    /// With a [spill file](PoolOptions::spill) it also waits until the thread has written and freed all that it can.
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
        let trimmed = self.core().trim()?;
        event!(debug, bytes = trimmed, "pool trimmed");
        Ok(trimmed)
    }

    /// Gives back a slice, at most 2 MiB, of the pages that were idle for [that long](PoolOptions::decay); returns how
    /// many bytes. Well below a millisecond.
    ///
    /// # Errors
    ///
    /// As for [`trim`](Pool::trim).
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    /// use std::time::Duration;
    ///
    /// let pool = Pool::options().decay(Duration::from_millis(10)).create()?;
    /// Rope::in_pool(&pool).extend_from_slice(&[7; 100_000]);
    /// // An event loop that has nothing else to do until then:
    /// while let Some(timeout) = pool.decay_timeout() {
    ///     std::thread::sleep(timeout);
    ///     pool.decay()?;
    /// }
    /// assert_eq!(pool.stats().warm, 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn decay(&self) -> io::Result<u64> {
        self.core().decay()
    }

    /// Returns how long until [`decay`](Pool::decay) should be called next: a timeout for poll(2) or epoll_wait(2).
    /// `None` while no page is idle.
    ///
    /// It is at most a sixteenth of [`PoolOptions::decay`], and zero while a slice is due.
    #[must_use]
    pub fn decay_timeout(&self) -> Option<Duration> {
        self.core().decay_timeout()
    }

    /// Reserves room for `bytes`, which only a rope [made with it](crate::Rope::in_room) can use. O(1).
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`](io::ErrorKind::OutOfMemory) when so much is not available now, or others wait.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// let pool = Pool::options().capacity(1 << 20).create()?;
    /// let all = pool.try_room(1 << 20)?;
    /// assert!(pool.try_room(1).is_err());
    /// drop(all);
    /// assert!(pool.try_room(1).is_ok());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn try_room(&self, bytes: usize) -> io::Result<Room> {
        let pages = self.core().pages_to_reserve(bytes as u64)?;
        self.core().try_reserve(pages)?;
        Ok(Room::new(self.clone(), pages))
    }

    /// Waits until room for `bytes` is reserved. Needs no particular runtime.
    ///
    /// Waiters are served first come, first served. One that needs more than is available collects what others free; an
    /// eighth of the capacity is left out of that, with which smaller requests pass it. Queueing and leaving are
    /// O(log n) with n waiters.
    ///
    /// Ropes that hold pages while they wait for more can wait for each other for ever. Wait for all that is needed
    /// before receiving, as here, or set a deadline.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`](io::ErrorKind::OutOfMemory), at once, when it is more than the capacity.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// /// An empty rope with room for `bytes`, as soon as there is some.
    /// async fn rope_with_room(pool: &Pool, bytes: usize) -> std::io::Result<Rope> {
    ///     Ok(Rope::in_room(pool.wait_for_room(bytes).await?))
    /// }
    /// ```
    pub fn wait_for_room(&self, bytes: usize) -> RoomFuture {
        RoomFuture::new(self.clone(), bytes as u64)
    }

    /// Waits until a rope can [spill](PoolOptions::spill) without waiting for the disk. Needs no particular runtime; ready
    /// at once in a pool that does not spill.
    ///
    /// A rope that spills while as much memory as may be is not written yet waits in the call that fills it, until 2 MiB
    /// are written. Await this before, where that would stop others. tokio's `ReadRope` does.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// /// Appends a piece of a body.
    /// async fn take(rope: &mut Rope, pool: &Pool, piece: &[u8]) {
    ///     pool.wait_for_spill().await;
    ///     rope.extend_from_slice(piece);
    /// }
    /// ```
    pub async fn wait_for_spill(&self) {
        let mut wait = SpillWait::default();
        poll_fn(|context| self.poll_spill(false, &mut wait, context)).await;
    }

    /// Polls for the same; with `next`, also for the memory of the page that a rope takes next.
    pub(crate) fn poll_spill(&self, next: bool, wait: &mut SpillWait, context: &mut Context<'_>) -> Poll<()> {
        match self.spilling().and_then(|pool| pool.core().spill()) {
            Some(spill) => spill.poll_ready((false, next), wait, context),
            None => Poll::Ready(()),
        }
    }

    /// Panics if the pool's layers do not fit each other; for tests and fuzzers, while no other thread uses the pool.
    #[cfg(any(test, fuzzing))]
    pub fn assert_invariants(&self) {
        self.core().assert_invariants();
    }

    pub(crate) fn limits(&self) -> &'static Limits {
        self.core().limits
    }

    /// Bytes per page: the machine's, or a huge one's.
    #[inline]
    pub(crate) fn page_size(&self) -> usize {
        self.core().arena.page_size()
    }

    /// Returns an error in a child of the process that made the pool.
    #[inline]
    pub(crate) fn check_process(&self) -> io::Result<()> {
        self.core().check_process()
    }

    /// Where in the arena these bytes lie, if they lie there.
    pub(crate) fn offset_of(&self, bytes: &[u8]) -> Option<usize> {
        self.core().arena.offset_of(bytes)
    }

    /// The pool of the pages beyond the capacity.
    #[inline]
    pub(crate) fn overflow(&self) -> Option<&Pool> {
        self.core().overflow.as_ref()
    }

    /// The pool whose pages go to a file: that of the pages beyond the capacity, or this one.
    pub(crate) fn spilling(&self) -> Option<&Pool> {
        if self.core().spill().is_some() { Some(self) } else { self.overflow() }
    }

    /// Waits until room for `bytes` is reserved, or the spill file has some: `None`.
    #[cfg(feature = "tokio")]
    pub(crate) async fn wait_for_room_or_spill(&self, bytes: usize) -> io::Result<Option<Room>> {
        use std::future::{Future, poll_fn};
        use std::pin::pin;
        let mut room = pin!(self.wait_for_room(bytes));
        let mut spilled = pin!(async {
            let Some(overflow) = self.overflow() else { return std::future::pending().await };
            let _granted = overflow.wait_for_room(1).await?;
            if let Some(spill) = overflow.core().spill() {
                let mut wait = SpillWait::default();
                poll_fn(|context| spill.poll_ready((true, false), &mut wait, context)).await;
            }
            Ok(None)
        });
        poll_fn(|context| match room.as_mut().poll(context) {
            Poll::Ready(room) => Poll::Ready(room.map(Some)),
            Poll::Pending => spilled.as_mut().poll(context),
        })
        .await
    }

    /// A reference of their own to the pages of these bytes, which the caller keeps alive, and their address with
    /// provenance for all of them, if they lie in the arena or the overflow's. O(pages).
    pub(crate) fn pin(&self, bytes: &[u8]) -> Option<(PageRef, NonNull<u8>)> {
        self.check_process().ok()?;
        let Some(offset) = self.offset_of(bytes) else { return self.overflow()?.pin(bytes) };
        Some((PageRef::pin(self.shard(), offset..offset + bytes.len()), self.address_of(offset)))
    }

    /// The address of a byte of the arena, with provenance for all of it.
    pub(crate) fn address_of(&self, offset: usize) -> NonNull<u8> {
        self.core().arena.at(offset)
    }

    /// The memfd, unless the arena is anonymous.
    pub(crate) fn file(&self) -> Option<&Arc<File>> {
        self.core().arena.file()
    }

    /// What is behind an address in the arena, if it is not anonymous: the memfd, the offset there, and the address with
    /// provenance for all of the arena.
    pub(crate) fn behind(&self, address: usize) -> Option<(&Arc<File>, usize, NonNull<u8>)> {
        let arena = &self.core().arena;
        let offset = address.checked_sub(arena.addresses().start)?;
        let file = arena.file().filter(|_| arena.addresses().contains(&address))?;
        Some((file, arena.in_file(offset), arena.at(offset)))
    }

    /// Bytes that the first read of a payload should ask for; 0 before any has come.
    #[inline]
    pub(crate) fn first_read(&self) -> u32 {
        self.core().counters.first_read.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_first_read(&self, bytes: u32) {
        // Most payloads are like the one before; a store would take the cache line from other cores.
        if self.first_read() != bytes {
            self.core().counters.first_read.store(bytes, Ordering::Relaxed);
        }
    }

    /// Returns whether what was received must be overwritten when it is freed.
    #[inline]
    pub(crate) fn zeroes(&self) -> bool {
        self.core().zero_on_release
    }

    /// Counts that memory came from the heap because the pool had none.
    pub(crate) fn count_fallback(&self) {
        self.core().counters.fallbacks.fetch_add(1, Ordering::Relaxed);
        event!(debug, "no room in the pool, memory taken from the heap");
    }

    /// Counts what a view cost.
    pub(crate) fn count_view(&self, copied: usize, mapped: usize, maps: usize) {
        let add = |counter: &AtomicU64, count: usize| counter.fetch_add(count as u64, Ordering::Relaxed);
        add(&self.core().counters.bytes_copied, copied);
        add(&self.core().counters.bytes_mapped, mapped);
        add(&self.core().counters.maps, maps);
        event!(trace, copied, mapped, maps, "rope finalised");
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pool").field(&self.stats()).finish()
    }
}

impl PoolOptions {
    /// memfd_create(2) and mmap(2): makes the pool. Microseconds; no heap memory to speak of.
    ///
    /// Where a memfd is refused (seccomp, `RLIMIT_NOFILE`) the pool is made of anonymous memory; where so large a
    /// mapping is refused (`RLIMIT_AS`, `RLIMIT_DATA`, `RLIMIT_FSIZE`) it is smaller, and takes at most half of what the
    /// limit leaves. [`Pool::stats`] tells.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a capacity of 0 or of 2^31 pages or more; what the system reports of the directory to
    /// [spill](PoolOptions::spill) to; else the kernel's refusal of even the smallest
    /// arena, 1 MiB.
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
        let pool = Pool::over(Core::new(&self)?)?;
        let _stats = pool.core().stats();
        event!(debug, capacity = _stats.capacity, backing = ?_stats.backing, "pool created");
        if _stats.reduced {
            event!(warn, "the kernel refused a memfd, or a mapping of the size asked for");
        }
        Ok(pool)
    }
}
