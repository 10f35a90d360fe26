//! Floor 3: receiving. One call of the kernel fills the rest of the tail and then a fresh extent.
//!
//! ```text
//!     readv ──► [ filled | spare bytes of the tail ]  [ fresh extent              ]
//!                        └─ grown in place first ─┘   └─ only if that was not enough
//! ```
//!
//! Whole pages that stayed empty go back to the pool before the call returns.

use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::pool::Extent;
use crate::rope::Rope;
use crate::sys::iovec::Room;
use crate::sys::{self, Received};

impl Rope {
    /// readv(2): appends what has arrived. Returns how many bytes that were; `Ok(0)` is the end of the
    /// stream.
    ///
    /// One system call, repeated on EINTR. It asks for 64 KiB at first, then for more as long as that
    /// much comes, for less when it does not: 4 KiB to 1 MiB. Works with any descriptor that readv(2)
    /// reads from.
    ///
    /// # Errors
    ///
    /// * [`WouldBlock`](io::ErrorKind::WouldBlock): nothing has arrived yet on a non-blocking descriptor.
    /// * [`QuotaExceeded`](io::ErrorKind::QuotaExceeded): the rope is at its [limit](Rope::set_limit)
    ///   and more has arrived. Nothing was taken out of the kernel.
    /// * [`OutOfMemory`](io::ErrorKind::OutOfMemory): the pool is at its capacity, or the system has no
    ///   memory. Nothing was taken out of the kernel.
    /// * Whatever else readv(2) reports.
    ///
    /// After any error the rope holds what it held before, and the call can be repeated.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    /// use std::io::Write;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (mut peer, socket) = UnixStream::pair()?;
    /// peer.write_all(b"all of it")?;
    /// drop(peer);
    ///
    /// let mut rope = Rope::in_pool(&Pool::new()?);
    /// while rope.readv_from(&socket)? > 0 {}
    /// assert_eq!(rope, b"all of it"[..]);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn readv_from(&mut self, fd: impl AsFd) -> io::Result<usize> {
        self.readv_up_to(fd, usize::MAX)
    }

    /// readv(2): like [`readv_from`](Rope::readv_from), but never takes more than `max` bytes, so that
    /// the next message stays where it is. `Ok(0)` is the end of the stream, or `max` was 0.
    ///
    /// # Errors
    ///
    /// As for [`readv_from`](Rope::readv_from).
    pub fn readv_up_to(&mut self, fd: impl AsFd, max: usize) -> io::Result<usize> {
        let fd = fd.as_fd();
        self.receive(fd, max, |rooms| sys::readv(fd, rooms), |&count| count).map(|count| count.unwrap_or(0))
    }

    /// recvmsg(2): like [`readv_from`](Rope::readv_from) on a socket, with the descriptors that came
    /// beside the bytes (`SCM_RIGHTS`). They are close-on-exec and owned from the start.
    ///
    /// `flags` are those of recvmsg(2), such as `MSG_DONTWAIT`; usually 0.
    ///
    /// # Errors
    ///
    /// As for [`readv_from`](Rope::readv_from); and `InvalidInput` for `MSG_PEEK`, `MSG_TRUNC` and
    /// `MSG_ERRQUEUE`, with which the bytes would not be those that left the socket.
    pub fn recvmsg_from(&mut self, fd: impl AsFd, flags: i32) -> io::Result<Received> {
        let fd = fd.as_fd();
        sys::check_recv_flags(flags)?;
        let received =
            self.receive(fd, usize::MAX, |rooms| sys::recvmsg(fd, rooms, flags), |got| got.bytes)?;
        Ok(received.unwrap_or_default())
    }

    /// Offers rooms to one `call` and keeps what it filled, which `count` tells. `None`: nothing to do.
    fn receive<T>(
        &mut self,
        fd: BorrowedFd<'_>,
        max: usize,
        call: impl FnOnce(&mut [Room<'_>]) -> io::Result<T>,
        count: impl FnOnce(&T) -> usize,
    ) -> io::Result<Option<T>> {
        let allowed = self.limit().saturating_sub(self.len());
        if allowed == 0 && max > 0 {
            return if sys::at_end_of_stream(fd)? {
                Ok(None)
            } else {
                Err(LimitReached(self.limit()).into())
            };
        }
        let want = self.reads_mut().bytes().min(max).min(allowed);
        if want == 0 {
            return Ok(None);
        }
        let result = self.prepare(want).and_then(|fresh| self.fill(want, fresh, call, count));
        self.give_back_spare();
        result.map(Some)
    }

    /// Makes `want` spare bytes ready: behind the tail if possible, else in the extent returned.
    fn prepare(&mut self, want: usize) -> io::Result<Option<Extent>> {
        let mut ready = 0;
        if let Some(tail) = self.tail_mut() {
            if tail.spare() < want {
                tail.grow(want - tail.spare());
            }
            ready = tail.spare().min(want);
            tail.commit(ready)?;
        }
        if ready == want {
            return Ok(None);
        }
        let fresh =
            self.new_extent(want - ready).and_then(|mut fresh| fresh.commit(want - ready).map(|()| fresh));
        // A smaller read is better than none.
        fresh.map(Some).or_else(|error| if ready > 0 { Ok(None) } else { Err(error) })
    }

    /// Makes the call with what was prepared.
    fn fill<T>(
        &mut self,
        want: usize,
        mut fresh: Option<Extent>,
        call: impl FnOnce(&mut [Room<'_>]) -> io::Result<T>,
        count: impl FnOnce(&T) -> usize,
    ) -> io::Result<T> {
        let behind = Room::new(self.tail_mut().map_or(&mut [], Extent::spare_mut), want);
        let in_tail = behind.len();
        let ahead = Room::new(fresh.as_mut().map_or(&mut [], Extent::spare_mut), want - in_tail);
        let in_fresh = ahead.len();
        let mut rooms = [behind, ahead];
        let used = usize::from(in_tail == 0)..1 + usize::from(in_fresh > 0);
        let result = call(&mut rooms[used])?;
        let count = count(&result);
        self.keep(count, in_tail, fresh);
        self.reads_mut().note(in_tail + in_fresh, count);
        Ok(result)
    }

    /// Counts what the kernel wrote as filled: the tail's room first.
    #[allow(unsafe_code)] // that the bytes are there is known only here
    fn keep(&mut self, count: usize, in_tail: usize, fresh: Option<Extent>) {
        if let Some(tail) = self.tail_mut() {
            // SAFETY: the kernel fills rooms in order and wrote `count` bytes, which `sys` has checked
            // to be no more than it was offered.
            unsafe { tail.fill(count.min(in_tail)) };
        }
        if let Some(mut fresh) = fresh.filter(|_| count > in_tail) {
            // SAFETY: as above; the rest went into the second room.
            unsafe { fresh.fill(count - in_tail) };
            self.replace_tail(fresh);
        }
        self.cut_pieces();
    }
}

/// More has arrived than the rope may hold.
#[derive(Debug)]
pub(crate) struct LimitReached(pub(crate) usize);

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LimitReached(limit) = self;
        write!(f, "more has arrived than the rope's limit of {limit} bytes; what is in the rope is kept")
    }
}

impl Error for LimitReached {}

impl From<LimitReached> for io::Error {
    fn from(error: LimitReached) -> io::Error {
        io::Error::new(io::ErrorKind::QuotaExceeded, error)
    }
}
