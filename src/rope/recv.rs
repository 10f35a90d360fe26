//! Receiving: one system call fills the rest of the tail and then a fresh extent.
//!
//! ```text
//!     readv ──► [ filled | spare bytes of the tail ]  [ fresh extent              ]
//!                        └─ grown in place first ─┘   └─ only if that was not enough
//! ```
//!
//! Memory is committed ahead of the read, for as many bytes as it asks for. Whole pages that stayed empty are freed
//! before the call returns.
//!
//! A system call clobbers the return-address predictor, so every frame below it mispredicts on return. Inlining the
//! path of a small message avoids that.
#![allow(clippy::inline_always)] // the path of a small message, which the compiler takes for too long

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::slice;

use bytes::{Buf, Bytes};
use zeroize::Zeroize;

use super::{MAX_READ, Rope, first_read};
use crate::pool::is_at_capacity;
use crate::sys::iovec::UninitIovec;
use crate::sys::{self, FdKind, Received};

/// Bytes on the stack for a small first read: no less than `Limits::inline_max`.
const STACK: usize = 4 << 10;

impl Rope {
    /// readv(2): appends what has arrived. Returns how many bytes that were; `Ok(0)` is the end of the
    /// stream.
    ///
    /// One system call, repeated on EINTR, or recv(2) where one place is enough and the descriptor is a socket's. Pages
    /// that are not resident are committed before, by one madvise(2). The read size is adaptive: at first about what
    /// the first read of the pool's last payload brought, or twice that if it brought all it asked for, 4 KiB to 256
    /// KiB; doubled while that much comes, halved when it does not, 4 KiB to 1 MiB. Room that was
    /// [reserved](Rope::reserve) is asked for at once, up to 1 MiB of it. A first read of up to 4 KiB becomes
    /// a segment of its own size rather than a page. Works with any descriptor that readv(2) reads from. Of a file that is
    /// open with `O_DIRECT` whole blocks go to pages directly; what begins or ends inside a page of the file is copied
    /// once, at three more system calls.
    ///
    /// From a socket that keeps message boundaries (datagram, seqpacket) one call brings one whole message: its length
    /// is asked for first. So it is with the packets of a pipe (`O_DIRECT`) where there is less room than a page.
    /// Messages without bytes are skipped, since `Ok(0)` is the end; [`recvmsg_from`](Rope::recvmsg_from) brings them
    /// too. Where the socket has `UDP_GRO`, the kernel merges datagrams into one message, and `recvmsg_from` tells their
    /// size. That a [`TcpStream`](std::net::TcpStream) or [`UnixStream`](std::os::unix::net::UnixStream) is a stream is
    /// known by its type; of other types a rope asks the kernel once, by getsockopt(2).
    ///
    /// At the limit and in a full pool `Ok(0)` is the end of the stream as well, for each kind of descriptor; where the
    /// kernel cannot tell, as of a device that has no end, it is the error.
    ///
    /// # Errors
    ///
    /// * [`WouldBlock`](io::ErrorKind::WouldBlock): nothing has arrived yet on a non-blocking descriptor.
    /// * [`QuotaExceeded`](io::ErrorKind::QuotaExceeded): the rope is at its [limit](Rope::set_limit)
    ///   and more has arrived. Nothing was taken out of the kernel.
    /// * [`OutOfMemory`](io::ErrorKind::OutOfMemory): the pool is at its capacity and more has arrived,
    ///   or the system has no memory. Nothing was taken out of the kernel.
    /// * Whatever else readv(2) reports.
    ///
    /// * [`InvalidData`](io::ErrorKind::InvalidData): a message was cut, because another reader took the one whose
    ///   length was asked for. The message is lost.
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
    pub fn readv_from<F: AsFd>(&mut self, fd: F) -> io::Result<usize> {
        self.readv_up_to(fd, usize::MAX)
    }

    /// readv(2): like [`readv_from`](Rope::readv_from), but never takes more than `max` bytes, so that
    /// the next message stays where it is. `Ok(0)` is the end of the stream, or `max` was 0.
    ///
    /// # Errors
    ///
    /// As for [`readv_from`](Rope::readv_from).
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
    pub fn readv_up_to<F: AsFd>(&mut self, fd: F, max: usize) -> io::Result<usize> {
        self.read_some(fd.as_fd(), sys::is_stream_type::<F>(), max)
    }

    /// [`readv_up_to`](Rope::readv_up_to) from a descriptor that `is_stream`, or that may be anything.
    #[inline(always)]
    pub(crate) fn read_some(&mut self, fd: BorrowedFd<'_>, is_stream: bool, max: usize) -> io::Result<usize> {
        if self.held_back.is_some() && max > 0 {
            return self.deliver(max);
        }
        let mut kind = self.source().kind(fd, is_stream);
        if kind.keeps_messages() {
            return self.read_message(fd, max, kind);
        }
        let call = |iovecs: &mut [UninitIovec<'_>]| sys::readv(fd, iovecs, &mut kind);
        let received = self.receive(fd, 0, max, call, |&count| count);
        self.source().note(kind);
        if kind.was_asked_for_packets() {
            if kind == FdKind::Packets {
                return self.read_message(fd, max, kind);
            }
            self.source().note_file(fd);
        }
        match received {
            Err(error) if sys::needs_alignment(fd, &error) => self.read_direct(fd, None, max),
            received => self.received(received),
        }
    }

    /// The result of a receive. After the end and after errors the kind of the descriptor is asked for again.
    #[inline(always)]
    pub(super) fn received(&mut self, received: io::Result<Option<usize>>) -> io::Result<usize> {
        match received {
            Ok(Some(count)) if count > 0 => Ok(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            last => {
                self.source().forget();
                Ok(last?.unwrap_or(0))
            }
        }
    }

    /// recvmsg(2) of one message that has bytes, or read(2) of one packet of a pipe.
    #[inline(never)]
    fn read_message(&mut self, fd: BorrowedFd<'_>, max: usize, mut kind: FdKind) -> io::Result<usize> {
        if max == 0 {
            return Ok(0);
        }
        let received = match sys::next_with_bytes(fd, kind) {
            Ok(0) => Ok(None),
            Ok(len) if len > max => return Err(longer_than(len, max)),
            Ok(len) => {
                let call = |iovecs: &mut [UninitIovec<'_>]| sys::readv(fd, iovecs, &mut kind);
                self.receive_message(len, call, |&count| count).map(Some)
            }
            Err(error) => Err(error),
        };
        self.received(received)
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
        if self.held_back.is_some() {
            return Ok(Received { bytes: self.deliver(usize::MAX)?, ..Received::default() });
        }
        let call = |iovecs: &mut [UninitIovec<'_>]| sys::recvmsg(fd, iovecs, flags);
        if self.source().kind(fd, false) == FdKind::Message {
            return match sys::next_message_len(fd, flags)? {
                0 => call(&mut []),
                len => self.receive_message(len, call, |got| got.bytes),
            };
        }
        let received = self.receive(fd, flags, usize::MAX, call, |got| got.bytes);
        match &received {
            Ok(Some(got)) if got.bytes > 0 && !got.truncated => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => self.source().forget(), // as in `received`; what was cut may be a message
        }
        Ok(received?.unwrap_or_else(|| Received { end: true, ..Received::default() }))
    }

    /// Appends up to `max` of the bytes that were held back, if there are any.
    #[cfg(feature = "tokio")]
    pub(crate) fn deliver_held_back(&mut self, max: usize) -> Option<io::Result<usize>> {
        (self.held_back.is_some() && max > 0).then(|| self.deliver(max))
    }

    /// Appends up to `max` of the bytes that were held back; returns how many bytes that were.
    #[cold]
    pub(super) fn deliver(&mut self, max: usize) -> io::Result<usize> {
        let Some(mut held) = self.held_back.take() else { return Ok(0) };
        let most = held.len().min(max).min(self.allowed());
        let delivered = if most == 0 {
            Err(self.limit_reached())
        } else {
            match self.copy_in(&held[..most]) {
                Err(not_copied) if not_copied.bytes == most => Err(not_copied.error),
                copied => Ok(most - copied.map_or_else(|not_copied| not_copied.bytes, |()| 0)),
            }
        };
        held.advance(*delivered.as_ref().unwrap_or(&0));
        self.hold_back(held);
        delivered
    }

    /// Appends all bytes that were held back.
    pub(crate) fn deliver_all(&mut self) -> io::Result<()> {
        while self.held_back.is_some() {
            self.deliver(usize::MAX)?;
        }
        Ok(())
    }

    /// Keeps the stream's next bytes beside the rope, for the next receive.
    pub(crate) fn hold_back(&mut self, bytes: Bytes) {
        self.held_back = (!bytes.is_empty()).then_some(bytes);
    }

    /// Bytes that the limit allows.
    #[inline]
    pub(crate) fn allowed(&self) -> usize {
        self.limit().saturating_sub(self.len())
    }

    pub(crate) fn limit_reached(&self) -> io::Error {
        let message = format!(
            "more than the rope's limit of {} bytes; the {} that it holds are kept; raise Rope::set_limit to go on",
            self.limit(),
            self.len()
        );
        io::Error::new(io::ErrorKind::QuotaExceeded, message)
    }

    /// Makes the call with memory for all `len` bytes of a message: what is not offered memory is lost.
    fn receive_message<T>(
        &mut self,
        len: usize,
        call: impl FnOnce(&mut [UninitIovec<'_>]) -> io::Result<T>,
        count: impl FnOnce(&T) -> usize,
    ) -> io::Result<T> {
        if len > self.allowed() {
            return Err(self.limit_reached());
        }
        if len <= self.inline_max() && self.is_empty() && !self.has_tail() {
            return self.receive_small(len, false, call, count);
        }
        self.reserve(len)?;
        self.tail_mut().map_or(Ok(()), |tail| tail.commit(len))?;
        self.fill(len, call, count)
    }

    /// Offers memory to one `call` and keeps what it filled, which `count` tells. `None`: nothing to do.
    #[inline(always)]
    fn receive<T>(
        &mut self,
        fd: BorrowedFd<'_>,
        flags: i32,
        max: usize,
        call: impl FnOnce(&mut [UninitIovec<'_>]) -> io::Result<T>,
        count: impl FnOnce(&T) -> usize,
    ) -> io::Result<Option<T>> {
        if self.allowed() == 0 && max > 0 {
            return none_at_end(fd, flags, self.limit_reached());
        }
        let want = self.read_size(max);
        if want == 0 {
            return Ok(None);
        }
        let reserved = self.tail_mut().map_or(0, |tail| tail.reserved());
        if reserved > 0 && self.source().last() == FdKind::Records {
            let all = reserved.min(max).min(self.allowed());
            return self.receive_message(all, call, count).map(Some);
        }
        match self.receive_ready(want, want == max, call, count) {
            Err(error) if is_at_capacity(&error) => none_at_end(fd, flags, error),
            done => done.map(Some),
        }
    }

    /// Bytes that a read asks for: at least what is reserved, at most `max` and what the limit allows.
    #[inline(always)]
    pub(super) fn read_size(&mut self, max: usize) -> usize {
        let reserved = self.tail_mut().map_or(0, |tail| tail.reserved());
        self.reads().bytes().max(reserved.min(MAX_READ as usize)).min(max).min(self.allowed())
    }

    /// Offers memory for up to `want` bytes, `all` of which are likely to come or not, to one `call`, and keeps what it
    /// filled, which `count` tells.
    #[inline(always)]
    pub(crate) fn receive_ready<T>(
        &mut self,
        want: usize,
        all: bool,
        call: impl FnOnce(&mut [UninitIovec<'_>]) -> io::Result<T>,
        count: impl FnOnce(&T) -> usize,
    ) -> io::Result<T> {
        if want <= self.inline_max() && self.is_empty() && !self.has_tail() {
            return self.receive_small(want, all, call, count);
        }
        self.fill(want, call, count)
    }

    /// Makes the call with memory on the stack, and keeps what came in a segment of its own size: a small
    /// message needs no page, and an idle connection nothing at all. If `all` are likely to come, the memory is made
    /// that segment, else it is on the stack.
    #[inline(always)]
    fn receive_small<T>(
        &mut self,
        want: usize,
        all: bool,
        call: impl FnOnce(&mut [UninitIovec<'_>]) -> io::Result<T>,
        count: impl FnOnce(&T) -> usize,
    ) -> io::Result<T> {
        let mut stack = [MaybeUninit::uninit(); STACK];
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

    /// Makes the call with memory in the tail, and beyond it if need be.
    #[allow(unsafe_code)] // that the bytes are there is known only here
    #[inline(never)]
    pub(super) fn fill<T>(
        &mut self,
        want: usize,
        call: impl FnOnce(&mut [UninitIovec<'_>]) -> io::Result<T>,
        count: impl FnOnce(&T) -> usize,
    ) -> io::Result<T> {
        if self.tail_mut().is_some_and(|tail| tail.ready() < want) {
            self.restart_if_empty();
        }
        let mut offer = self.offer(want).inspect_err(|_| self.release_spare())?;
        let result = match self.iovecs(&mut offer) {
            [tail, next] if next.len() == 0 => call(&mut [tail]),
            [tail, next] if tail.len() == 0 => call(&mut [next]),
            mut both => call(&mut both),
        };
        let moved = result.as_ref().map_or(0, count);
        self.learn(offer.len(), moved);
        // SAFETY: the kernel fills iovecs in order and wrote `moved` bytes, which `sys` has checked to be no more than
        // it was offered; another reader fills the first one only, and its `ReadBuf` has counted them.
        unsafe { self.commit(&mut offer, moved) };
        self.release_spare();
        result
    }

    /// Notes what a read brought, for the next one; and if it was a payload's first, for the next payload.
    #[inline]
    pub(super) fn learn(&mut self, offered: usize, count: usize) {
        let full = count == offered;
        self.source().was_short = 0 < count && !full;
        let held_back = full && count < self.inline_max();
        if let (Some(pool), true) = (self.pool(), self.is_empty() && count > 0 && !held_back) {
            pool.set_first_read(first_read(count, full, self.inline_max()));
        }
        let min = self.inline_max();
        self.reads().note(offered, count, (min, MAX_READ));
    }
}

/// What the kernel wrote to `memory`.
#[allow(unsafe_code)] // that the bytes are there is known only here
pub(super) fn filled(memory: &[MaybeUninit<u8>], count: usize) -> &[u8] {
    let memory = &memory[..count];
    // SAFETY: `receive_small` counted them: the first `count` bytes were written, by the kernel or a reader, and are
    // no more than were offered.
    unsafe { slice::from_raw_parts(memory.as_ptr().cast(), count) }
}

/// All of `memory`, which the kernel has filled.
#[allow(unsafe_code)] // that the bytes are there is known only here
fn whole(memory: Box<[MaybeUninit<u8>]>) -> Box<[u8]> {
    // SAFETY: the kernel wrote as many bytes as there are, which `sys` has checked to be what it was offered.
    unsafe { memory.assume_init() }
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
