//! Floor 3: receiving. One call of the kernel fills the rest of the tail and then a fresh extent.
//!
//! ```text
//!     readv ──► [ filled | spare bytes of the tail ]  [ fresh extent              ]
//!                        └─ grown in place first ─┘   └─ only if that was not enough
//! ```
//!
//! Whole pages that stayed empty go back to the pool before the call returns.
//!
//! What a small message needs is inlined into the caller: the processor forgets in the kernel where the
//! functions that are under way return to, and each of those is a branch mispredicted.
#![allow(clippy::inline_always)] // the compiler takes it for too much

use std::error::Error;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::slice;

use zeroize::Zeroize;

use crate::pool::{Extent, Pool, is_at_capacity};
use crate::rope::{LITTLE, Rope, first_read};
use crate::sys::iovec::UninitIovec;
use crate::sys::{self, FdKind, Received};

impl Rope {
    /// readv(2): appends what has arrived. Returns how many bytes that were; `Ok(0)` is the end of the
    /// stream.
    ///
    /// One system call, repeated on EINTR, or recv(2) where one place is enough and the descriptor is a
    /// socket's; pages that have no memory yet are filled by a pwrite(2) behind it. It asks at first for
    /// about what the first read of the pool's last payload brought, or for twice that if it brought all it
    /// was asked for, 4 KiB to 256 KiB; then for more as long as that much comes, for less when it does
    /// not: 4 KiB to 1 MiB. A first read of up to 4 KiB lies in a segment of its own size rather than in a
    /// page. Works with any descriptor that readv(2) reads from.
    ///
    /// From a socket that keeps message boundaries (datagram, seqpacket) one call brings one whole message: its length
    /// is asked for first. Messages without bytes are skipped, since `Ok(0)` is the end;
    /// [`recvmsg_from`](Rope::recvmsg_from) brings them too. At the limit and in a full pool `Ok(0)` is the end of the
    /// stream as well, for each kind of descriptor; where the kernel cannot tell, as of a device that has no end, it is
    /// the error.
    ///
    /// # Errors
    ///
    /// * [`WouldBlock`](io::ErrorKind::WouldBlock): nothing has arrived yet on a non-blocking descriptor.
    /// * [`QuotaExceeded`](io::ErrorKind::QuotaExceeded): the rope is at its [limit](Rope::set_limit)
    ///   and more has arrived. Nothing was taken out of the kernel.
    /// * [`OutOfMemory`](io::ErrorKind::OutOfMemory): the pool is at its capacity and more has arrived,
    ///   or the system has no memory. Nothing was taken out of the kernel.
    /// * [`InvalidData`](io::ErrorKind::InvalidData): a message was cut, because another reader took the one whose
    ///   length was asked for. The message is lost.
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
    #[inline(always)]
    pub fn readv_from(&mut self, fd: impl AsFd) -> io::Result<usize> {
        self.readv_up_to(fd, usize::MAX)
    }

    /// readv(2): like [`readv_from`](Rope::readv_from), but never takes more than `max` bytes, so that
    /// the next message stays where it is. `Ok(0)` is the end of the stream, or `max` was 0: then the descriptor is not
    /// looked at, as by read(2).
    ///
    /// # Errors
    ///
    /// As for [`readv_from`](Rope::readv_from); and [`InvalidInput`](io::ErrorKind::InvalidInput) where the next
    /// message of a socket that keeps boundaries is longer than `max`. It stays in the socket.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::Rope;
    /// use std::io::Write;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (mut peer, socket) = UnixStream::pair()?;
    /// peer.write_all(b"one message, the next")?;
    /// let mut rope = Rope::new();
    /// assert_eq!(rope.readv_up_to(&socket, 11)?, 11);
    /// assert_eq!(rope, b"one message");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline(always)]
    pub fn readv_up_to(&mut self, fd: impl AsFd, max: usize) -> io::Result<usize> {
        let fd = fd.as_fd();
        let mut kind = self.source().kind(fd);
        if kind == FdKind::Message {
            return self.read_message(fd, max);
        }
        let received = self.receive(fd, 0, max, |rooms| sys::readv(fd, rooms, &mut kind), |&count| count);
        self.source().note(kind);
        match received {
            Ok(Some(count)) if count > 0 => Ok(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            last => {
                self.source().forget();
                Ok(last?.unwrap_or(0))
            }
        }
    }

    /// recvmsg(2) of one message that has bytes.
    #[inline(never)]
    fn read_message(&mut self, fd: BorrowedFd<'_>, max: usize) -> io::Result<usize> {
        if max == 0 {
            return Ok(0);
        }
        let mut len = sys::next_message_len(fd, 0)?;
        while len == 0 {
            if sys::recvmsg(fd, &mut [], 0)?.end {
                return Ok(0);
            }
            len = sys::next_message_len(fd, 0)?;
        }
        if len > max {
            return Err(longer_than(len, max));
        }
        let call = |iovecs: &mut [UninitIovec<'_>]| sys::readv(fd, iovecs, &mut FdKind::Message);
        self.receive_message(len, call, |&count| count)
    }

    /// recvmsg(2): like [`readv_from`](Rope::readv_from) on a socket, with the descriptors that came
    /// beside the bytes (`SCM_RIGHTS`). They are close-on-exec and owned from the start.
    ///
    /// `flags` are those of recvmsg(2), such as `MSG_DONTWAIT`; usually 0. With `MSG_WAITALL` a stream is waited for
    /// until as much has come as the call asks for, which a [limit](Rope::set_limit) bounds.
    ///
    /// # Errors
    ///
    /// As for [`readv_from`](Rope::readv_from); and `InvalidInput` for `MSG_PEEK`, `MSG_TRUNC` and
    /// `MSG_ERRQUEUE`, with which the bytes would not be those that left the socket.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::Rope;
    /// use std::os::fd::AsFd;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (socket, peer) = UnixStream::pair()?;
    /// Rope::from("log to this").sendmsg_to(&socket, 0, &[std::io::stdout().as_fd()])?;
    ///
    /// let mut rope = Rope::new();
    /// let received = rope.recvmsg_from(&peer, 0)?;
    /// assert_eq!((received.bytes, received.fds.len(), received.truncated), (11, 1, false));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn recvmsg_from(&mut self, fd: impl AsFd, flags: i32) -> io::Result<Received> {
        let fd = fd.as_fd();
        sys::check_recv_flags(flags)?;
        let call = |iovecs: &mut [UninitIovec<'_>]| sys::recvmsg(fd, iovecs, flags);
        if self.source().kind(fd) == FdKind::Message {
            return match sys::next_message_len(fd, flags)? {
                0 => call(&mut []),
                len => self.receive_message(len, call, |got| got.bytes),
            };
        }
        let received = self.receive(fd, flags, usize::MAX, call, |got| got.bytes)?;
        Ok(received.unwrap_or_else(|| Received { end: true, ..Received::default() }))
    }

    /// Makes the call with room for all `len` bytes of a message: what is not offered room is lost.
    fn receive_message<T>(
        &mut self,
        len: usize,
        call: impl FnOnce(&mut [UninitIovec<'_>]) -> io::Result<T>,
        count: impl FnOnce(&T) -> usize,
    ) -> io::Result<T> {
        if len > self.limit().saturating_sub(self.len()) {
            return Err(LimitReached(self.limit()).into());
        }
        if len <= LITTLE && self.is_empty() && !self.has_tail() {
            return self.receive_little(len, false, call, count);
        }
        self.reserve(len)?;
        let mut memory = Box::new_uninit_slice(len);
        let result = call(&mut [UninitIovec::new(&mut memory, len)])?;
        let message = filled(&memory, count(&result));
        if let Err(not_copied) = self.copy_in(message) {
            self.push(self.own(message[message.len() - not_copied.bytes..].into()));
        }
        if self.zeroes() {
            memory.zeroize();
        }
        Ok(result)
    }

    /// Offers rooms to one `call` and keeps what it filled, which `count` tells. `None`: nothing to do.
    #[inline(always)]
    fn receive<T>(
        &mut self,
        fd: BorrowedFd<'_>,
        flags: i32,
        max: usize,
        call: impl FnOnce(&mut [UninitIovec<'_>]) -> io::Result<T>,
        count: impl FnOnce(&T) -> usize,
    ) -> io::Result<Option<T>> {
        let allowed = self.limit().saturating_sub(self.len());
        if allowed == 0 && max > 0 {
            return none_at_end(fd, flags, LimitReached(self.limit()).into());
        }
        let want = self.reads().bytes().min(max).min(allowed);
        if want == 0 {
            return Ok(None);
        }
        if want <= LITTLE && self.is_empty() && !self.has_tail() {
            return self.receive_little(want, want == max, call, count).map(Some);
        }
        self.receive_more(fd, flags, want, call, count)
    }

    /// Makes the call with room in the tail, and beyond it if need be.
    #[inline(never)]
    fn receive_more<T>(
        &mut self,
        fd: BorrowedFd<'_>,
        flags: i32,
        want: usize,
        call: impl FnOnce(&mut [UninitIovec<'_>]) -> io::Result<T>,
        count: impl FnOnce(&T) -> usize,
    ) -> io::Result<Option<T>> {
        self.absorb_short();
        let result = match self.prepare(want) {
            Err(error) if is_at_capacity(&error) => none_at_end(fd, flags, error),
            Err(error) => Err(error),
            Ok(None) => self.fill_tail(want, call, count).map(Some),
            Ok(Some(ahead)) => self.fill(want, ahead, call, count).map(Some),
        };
        self.give_back_spare();
        result
    }

    /// Makes the call with room that nobody has to keep, and keeps what came in a segment of its own size: a
    /// small message needs no page, and an idle connection nothing at all. If `all` are likely to come, the
    /// room is made that segment, else it is on the stack.
    #[inline(always)]
    fn receive_little<T>(
        &mut self,
        want: usize,
        all: bool,
        call: impl FnOnce(&mut [UninitIovec<'_>]) -> io::Result<T>,
        count: impl FnOnce(&T) -> usize,
    ) -> io::Result<T> {
        let mut stack = [MaybeUninit::uninit(); LITTLE];
        let mut heap = Box::new_uninit_slice(if all { want } else { 0 });
        let memory = if all { &mut heap[..] } else { &mut stack };
        let result = call(&mut [UninitIovec::new(memory, want)])?;
        let count = count(&result);
        self.learn(want, count);
        if all && count == want {
            self.push(self.own(whole(heap)));
        } else if count > 0 {
            self.push(self.own(filled(memory, count).into()));
            if self.zeroes() {
                memory.zeroize();
            }
        }
        Ok(result)
    }

    /// Notes what a read brought, for the next one; and if it was a payload's first, for the next payload.
    #[inline]
    fn learn(&mut self, offered: usize, count: usize) {
        let full = count == offered;
        let held_back = full && count < LITTLE;
        if let (Some(pool), true) = (self.pool(), self.is_empty() && count > 0 && !held_back) {
            pool.set_first_read(first_read(count, full));
        }
        self.reads().note(offered, count);
    }

    /// Finds `want` bytes of room, or some at least, behind what is there; `None` if it is ready in the tail.
    #[inline]
    fn prepare(&mut self, want: usize) -> io::Result<Option<Ahead>> {
        if !self.has_tail() && self.short_segment().is_none() {
            let fresh = self.new_extent(want)?;
            self.replace_tail(fresh);
        }
        let (mut room, mut ready) = (0, 0);
        if let Some(tail) = self.tail_mut() {
            if tail.spare() < want {
                tail.grow(want - tail.spare());
            }
            (room, ready) = (tail.spare().min(want), tail.ready().min(want));
        }
        if ready < room {
            match self.warm_tail(want) {
                // Elsewhere in the pool there may be pages that have memory.
                Err(_) if self.give_back_cold() => room = ready,
                done => return done,
            }
        }
        if room == want {
            return Ok(None);
        }
        match self.ahead(want - room) {
            // A smaller read is better than none.
            Err(_) if room > 0 => Ok(None),
            ahead => ahead.map(Some),
        }
    }

    /// Makes a way into the tail's pages, some of which are cold; `None` if it makes them ready.
    #[inline(never)]
    fn warm_tail(&mut self, want: usize) -> io::Result<Option<Ahead>> {
        let Some(tail) = self.tail_mut() else { return Ok(None) };
        if let Some(bounce) = tail.bounce() {
            return Ok(Some(Ahead::ColdTail(bounce)));
        }
        tail.commit(want)?;
        Ok(None)
    }

    /// A fresh extent, and the way into it.
    #[inline(never)]
    fn ahead(&self, want: usize) -> io::Result<Ahead> {
        let short = if self.has_tail() { None } else { self.short_segment() };
        let short = short.map_or(&[][..], |bytes| bytes);
        let mut fresh = self.new_extent(want + short.len())?;
        // The copy must leave room: this is about what follows it.
        let short = if short.len() < fresh.spare() { short } else { &[] };
        fresh.begin_with(short)?;
        if fresh.ready() == 0 {
            if let Some(bounce) = fresh.bounce() {
                return Ok(Ahead::Cold((fresh, short.len()), bounce));
            }
            fresh.commit(want)?;
        }
        Ok(Ahead::Warm((fresh, short.len())))
    }

    /// Makes the call with the tail's room alone.
    #[allow(unsafe_code)] // that the bytes are there is known only here
    #[inline]
    fn fill_tail<T>(
        &mut self,
        want: usize,
        call: impl FnOnce(&mut [UninitIovec<'_>]) -> io::Result<T>,
        count: impl FnOnce(&T) -> usize,
    ) -> io::Result<T> {
        let room = UninitIovec::new(self.tail_mut().map_or(&mut [], Extent::spare_mut), want);
        let offered = room.len();
        some_room(offered)?;
        let result = call(&mut [room]);
        let moved = result.as_ref().map_or(0, count);
        self.learn(offered, moved);
        if let Some(tail) = self.tail_mut() {
            // SAFETY: the kernel wrote `moved` bytes, which `sys` has checked to be no more than it was offered.
            unsafe { tail.fill(moved) };
        }
        self.cut_pieces();
        result
    }

    /// Makes the call with the tail's room and what was prepared beyond it.
    #[inline(never)]
    fn fill<T>(
        &mut self,
        want: usize,
        mut ahead: Ahead,
        call: impl FnOnce(&mut [UninitIovec<'_>]) -> io::Result<T>,
        count: impl FnOnce(&T) -> usize,
    ) -> io::Result<T> {
        let beyond = ahead.room(self.tail_mut().map_or(0, |tail| tail.spare() - tail.ready()));
        let first = UninitIovec::new(self.tail_mut().map_or(&mut [], Extent::spare_mut), want);
        let in_tail = first.len();
        let second = UninitIovec::new(ahead.extent_mut().spare_mut(), beyond.min(want - in_tail));
        let offered = in_tail + second.len();
        some_room(offered)?;
        let mut rooms = [first, second];
        let used = usize::from(in_tail == 0)..1 + usize::from(offered > in_tail);
        let result = call(&mut rooms[used]);
        let moved = result.as_ref().map_or(0, count);
        self.learn(offered, moved);
        self.keep(moved, in_tail, ahead);
        result
    }

    /// Counts what the kernel wrote as filled: the tail's room first.
    #[allow(unsafe_code)] // that the bytes are there is known only here
    #[inline]
    fn keep(&mut self, count: usize, in_tail: usize, mut ahead: Ahead) {
        if let Some(tail) = self.tail_mut() {
            // SAFETY: the kernel fills rooms in order and wrote `count` bytes, which `sys` has checked
            // to be no more than it was offered.
            unsafe { tail.fill(count.min(in_tail)) };
        }
        let more = count.saturating_sub(in_tail);
        // SAFETY: as above; the rest went into the second room, which is this extent's.
        unsafe { ahead.extent_mut().fill(more) };
        let (fresh, bounce) = ahead.into_parts();
        if let (true, Some((fresh, short))) = (more > 0, fresh) {
            if short > 0 {
                self.drop_short();
            }
            self.replace_tail(fresh);
        }
        if let Some(bounce) = bounce {
            self.pass_on(bounce);
        }
        self.cut_pieces();
    }

    /// Writes what came into `bounce` to the tail's cold pages.
    fn pass_on(&mut self, bounce: Extent) {
        let written = match self.tail_mut() {
            Some(tail) if bounce.len() > 0 => tail.write_cold(bounce.filled()),
            _ => 0,
        };
        let pool = self.pool().cloned();
        if written < bounce.len() {
            // The kernel has no memory for the pages, but the bytes are out of the socket: keep them.
            self.push(self.own(bounce.filled()[written..].into()));
            pool.iter().for_each(Pool::refuse_bounce);
        }
        if let Some(pool) = pool {
            pool.give_bounce(bounce);
        }
    }
}

/// What the kernel wrote to `memory`.
#[allow(unsafe_code)] // that the bytes are there is known only here
fn filled(memory: &[MaybeUninit<u8>], count: usize) -> &[u8] {
    let memory = &memory[..count];
    // SAFETY: the kernel wrote the first `count` bytes, which `sys` has checked to be no more than it
    // was offered.
    unsafe { slice::from_raw_parts(memory.as_ptr().cast(), count) }
}

/// All of `memory`, which the kernel has filled.
#[allow(unsafe_code)] // that the bytes are there is known only here
fn whole(memory: Box<[MaybeUninit<u8>]>) -> Box<[u8]> {
    // SAFETY: the kernel wrote as many bytes as there are, which `sys` has checked to be what it was offered.
    unsafe { memory.assume_init() }
}

/// Where bytes go that find no room in the tail's committed pages.
enum Ahead {
    /// To an extent whose pages are mapped.
    Warm(Fresh),
    /// To a bounce buffer, and from there to the tail's own cold pages.
    ColdTail(Extent),
    /// To a bounce buffer, and from there to an extent whose pages are cold.
    Cold(Fresh, Extent),
}

/// The next tail, and how many bytes of a short segment it begins with a copy of.
type Fresh = (Extent, usize);

impl Ahead {
    /// The extent that the kernel is to write to.
    fn extent_mut(&mut self) -> &mut Extent {
        match self {
            Ahead::Warm((extent, _)) | Ahead::ColdTail(extent) | Ahead::Cold(_, extent) => extent,
        }
    }

    /// Most bytes that may be read, `cold_tail` being what is cold in the tail.
    fn room(&self, cold_tail: usize) -> usize {
        match self {
            Ahead::Warm((fresh, _)) => fresh.ready(),
            Ahead::ColdTail(_) => cold_tail,
            Ahead::Cold((fresh, _), _) => fresh.spare(),
        }
    }

    /// The next tail and the bounce buffer, as far as there are any.
    fn into_parts(self) -> (Option<Fresh>, Option<Extent>) {
        match self {
            Ahead::Warm(fresh) => (Some(fresh), None),
            Ahead::ColdTail(bounce) => (None, Some(bounce)),
            Ahead::Cold(fresh, bounce) => (Some(fresh), Some(bounce)),
        }
    }
}

/// Makes sure that the kernel is offered something: else it would say 0, which looks like the end of the stream.
#[inline]
fn some_room(offered: usize) -> io::Result<()> {
    if offered > 0 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::OutOfMemory, "no room for even one byte"))
}

fn longer_than(len: usize, max: usize) -> io::Error {
    let message =
        format!("the next message has {len} bytes, more than the {max} asked for; it was not taken");
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// There is no room, which does not matter at the end of the stream.
fn none_at_end<T>(fd: BorrowedFd<'_>, flags: i32, error: io::Error) -> io::Result<Option<T>> {
    if sys::at_end_of_stream(fd, flags)? { Ok(None) } else { Err(error) }
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
