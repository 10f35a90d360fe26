//! Room in a pool that is reserved for one rope, and the future that waits for it.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
#[cfg(feature = "http-body")]
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use super::core::{Core, Pool, Want};
use super::page_ref::PageRef;
use super::refused::is_at_capacity;
use super::wake::wake_all;

/// Room that a pool has reserved: capacity that only a rope [made with it](crate::Rope::in_room) can use.
///
/// The reservation is a number of pages, not a place: it may be filled in several runs, so fragmentation does not
/// matter. Dropping it returns what is left.
///
/// # Examples
///
/// ```
/// use ropewalk::{Pool, Rope};
///
/// let pool = Pool::options().capacity(1 << 20).create()?;
/// let room = pool.try_room(1 << 20)?;
/// assert!(Rope::in_pool(&pool).reserve(1).is_err()); // all of it is reserved
/// let mut rope = Rope::in_room(room);
/// rope.extend_from_slice(&[7; 1 << 20]);
/// assert_eq!(pool.stats().fallbacks, 0);
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "dropping it returns the room"]
pub struct Room {
    pool: Pool,
    /// Pages that are reserved and not allocated yet.
    pages: u32,
}

impl Room {
    pub(super) fn new(pool: Pool, pages: u32) -> Room {
        Room { pool, pages }
    }

    /// A reference to the pool for a rope: nothing is reserved.
    #[inline]
    pub(crate) fn empty(pool: &Pool) -> Room {
        Room { pool: pool.share(), pages: 0 }
    }

    /// Bytes that are reserved, in whole pages. O(1).
    ///
    /// # Examples
    ///
    /// ```
    /// let room = ropewalk::Pool::new()?.try_room(1)?;
    /// assert_eq!(room.len() % room.pool().stats().page_size, 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> u64 {
        self.pool.core().bytes(self.pages)
    }

    /// Returns `true` if no bytes are reserved.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// Returns the pool that reserved it.
    #[must_use]
    #[inline]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Takes the reservation of `other`, unless it is of another pool.
    pub(crate) fn absorb(&mut self, mut other: Room) -> Result<(), Room> {
        if !self.pool.is_same(&other.pool) {
            return Err(other);
        }
        self.pages += std::mem::take(&mut other.pages);
        Ok(())
    }

    /// Reserves pages again that were allocated from the reservation and freed unused.
    pub(crate) fn reserved_again(&mut self, pages: u32) {
        self.pages += pages;
    }

    /// Allocates up to `want` bytes for a rope that holds `held`, at least a page.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` when the pool is at capacity, and its spill file too.
    #[inline]
    pub(crate) fn allocate(&mut self, want: usize, held: usize) -> io::Result<PageRef> {
        self.allocate_or_spill(|core| Want::UpTo(core.pages(want), core.pages(held)))
    }

    /// Allocates up to `want` bytes for a rope that passes on what it receives; else as above.
    pub(crate) fn allocate_packed(&mut self, want: usize) -> io::Result<PageRef> {
        self.allocate_or_spill(|core| Want::Packed(core.pages(want)))
    }

    /// Allocates at least `want` bytes in one run; else as above.
    pub(crate) fn allocate_exact(&mut self, want: usize) -> io::Result<PageRef> {
        self.allocate_or_spill(|core| Want::Exactly(core.pages(want)))
    }

    #[inline]
    fn allocate_or_spill(&mut self, want: impl Fn(&Core) -> Want) -> io::Result<PageRef> {
        match PageRef::allocate(self.pool.shard(), want(self.pool.core()), &mut self.pages) {
            Err(full) if is_at_capacity(&full) => self.spill(full, want),
            done => done,
        }
    }

    #[cold]
    fn spill(&self, full: io::Error, want: impl Fn(&Core) -> Want) -> io::Result<PageRef> {
        let overflow = self.pool.overflow().ok_or(full)?.share();
        PageRef::allocate(overflow.shard(), want(overflow.core()), &mut 0)
    }

    /// Allocates up to `want` bytes that are resident, for when memory is short; else as above.
    pub(crate) fn allocate_resident(&mut self, want: usize) -> io::Result<PageRef> {
        PageRef::allocate(self.pool.shard(), Want::Resident(self.pool.core().pages(want)), &mut self.pages)
    }

    /// Allocates up to `more` bytes behind `pages`, or (`exactly`) all of them; returns how many pages.
    pub(crate) fn grow(&mut self, pages: &mut PageRef, more: usize, held: usize, exactly: bool) -> u32 {
        let want = |core: &Core| {
            let more = core.pages(more);
            if exactly { Want::Exactly(more) } else { Want::UpTo(more, core.pages(held)) }
        };
        if pages.is_of(self.pool.shard()) {
            return pages.grow(want(self.pool.core()), &mut self.pages);
        }
        match self.pool.overflow() {
            Some(overflow) if pages.is_of(overflow.shard()) => pages.grow(want(overflow.core()), &mut 0),
            // A completion-based read may have brought pages of another pool.
            _ => 0,
        }
    }

    /// Returns what is reserved.
    #[inline]
    pub(crate) fn release(&mut self) {
        if self.pages > 0 {
            self.pool.core().unreserve(std::mem::take(&mut self.pages));
        }
    }
}

/// The part of the capacity that may lie outside a pool's pages, as 1 of so many.
#[cfg(feature = "http-body")]
pub(super) const BESIDE_PART: u64 = 32;

/// Counts bytes of a pool's ropes that lie outside its pages, so that there are never too many of them.
///
/// They may be a small part of a larger buffer, and keep all of it. hyper's buffer has up to 408 KiB, 26 times the shortest
/// piece that is kept, so together they keep less than the capacity.
#[cfg(feature = "http-body")]
pub(crate) struct Beside {
    pool: Pool,
    bytes: u64,
}

#[cfg(feature = "http-body")]
impl Beside {
    /// `None` if that would be too many, and where all bytes have to be in the pool's pages.
    pub(crate) fn new(pool: &Pool, bytes: usize) -> Option<Beside> {
        let own_only = pool.zeroes() || pool.is_for_handover() || pool.is_for_file();
        if own_only || pool.core().check_process().is_err() {
            return None;
        }
        let mut beside = Beside { pool: pool.share(), bytes: 0 };
        beside.add(bytes).then_some(beside)
    }

    /// Counts so many more bytes, unless that would be too many; returns whether it did.
    pub(crate) fn add(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let left = &self.pool.core().counters.beside_left;
        let took =
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok();
        if took {
            self.bytes += bytes;
        }
        took
    }
}

#[cfg(feature = "http-body")]
impl Drop for Beside {
    fn drop(&mut self) {
        self.pool.core().counters.beside_left.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// One of the bodies that are being received into a pool's ropes.
#[cfg(feature = "http-body")]
pub(crate) struct Receiving(Pool);

#[cfg(feature = "http-body")]
impl Receiving {
    pub(crate) fn new(pool: &Pool) -> Receiving {
        pool.core().counters.receiving.fetch_add(1, Ordering::Relaxed);
        Receiving(pool.share())
    }

    /// Whether there is no other.
    pub(crate) fn is_only(&self) -> bool {
        self.0.core().counters.receiving.load(Ordering::Relaxed) == 1
    }
}

#[cfg(feature = "http-body")]
impl Drop for Receiving {
    fn drop(&mut self) {
        self.0.core().counters.receiving.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Room {
    #[inline]
    fn drop(&mut self) {
        self.release();
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Yields [`Room`] once the pool has reserved it; see [`Pool::wait_for_room`].
///
/// It takes its place among the waiters when it is first polled and leaves when it is dropped: O(log n) with n waiters.
/// Room that it was granted but has not yielded yet is returned then. A panic of the waker goes no further than the waker,
/// since it is called where pages are freed.
///
/// # Examples
///
/// ```
/// use ropewalk::Pool;
/// use std::pin::pin;
/// use std::task::{Context, Waker};
///
/// let pool = Pool::new()?;
/// let room = pin!(pool.wait_for_room(1 << 20));
/// // There is room, so it is ready at once.
/// assert!(room.poll(&mut Context::from_waker(Waker::noop())).is_ready());
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "futures do nothing unless polled"]
pub struct RoomFuture {
    pool: Pool,
    bytes: u64,
    ticket: Option<u64>,
}

impl RoomFuture {
    pub(super) fn new(pool: Pool, bytes: u64) -> RoomFuture {
        RoomFuture { pool, bytes, ticket: None }
    }
}

impl Future for RoomFuture {
    type Output = io::Result<Room>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<Room>> {
        let this = self.get_mut();
        let core = this.pool.core();
        let pages = core.pages_to_reserve(this.bytes)?;
        // Cloned and dropped outside the lock: wakers run foreign code.
        let mut waker = context.waker().clone();
        let (ticket, wakers) = core.request(pages, this.ticket, &mut waker);
        this.ticket = ticket;
        wake_all(wakers);
        if ticket.is_some() {
            return Poll::Pending;
        }
        Poll::Ready(Ok(Room::new(this.pool.clone(), pages)))
    }
}

impl Drop for RoomFuture {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.pool.core().cancel(ticket);
        }
    }
}

impl fmt::Debug for RoomFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoomFuture")
            .field("bytes", &self.bytes)
            .field("waiting", &self.ticket.is_some())
            .finish()
    }
}
