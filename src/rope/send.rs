//! Sending: one system call names up to 1 024 segments.
//!
//! Two ways with the same three rungs: a [`Rope`] loses what was sent, a [`Cursor`] moves on.

use std::borrow::Borrow;
use std::io::{self, IoSlice};
use std::iter;
use std::os::fd::{AsFd, BorrowedFd};

use super::{Cursor, MAX_SEND, Pace, Rope};
use crate::sys::iovec::{Iovecs, MAX_BYTES};
use crate::sys::page_size;
use crate::sys::shown;
use crate::sys::{self, FdKind};

impl Rope {
    /// sendmsg(2), or writev(2) for what is not a socket: sends from the front. What was sent leaves
    /// the rope, and its pages are free again. Returns how many bytes that were: 0 only if the rope is
    /// empty.
    ///
    /// Bytes of a [file](Rope::push_file), and those that were [spilled](crate::PoolOptions::spill) to one, go by
    /// sendfile(2), those around them by other calls.
    ///
    /// One call that takes effect, repeated on EINTR; at most 1 024 segments. Sockets never raise
    /// SIGPIPE; pipes do, unless the signal is ignored, as it is in Rust programs.
    ///
    /// To a socket that keeps message boundaries (datagram, seqpacket) one call sends all of the rope as one
    /// message, or fails. An empty rope sends nothing, not even an empty message.
    ///
    /// Costs O(segments sent).
    ///
    /// # Errors
    ///
    /// * [`InvalidInput`](io::ErrorKind::InvalidInput): the rope is to be one message and has more than 1 024
    ///   segments. [Finalise](Rope::finalize) it and send the view. A message that is too long for the socket
    ///   is EMSGSIZE.
    /// * [`WouldBlock`](io::ErrorKind::WouldBlock): the descriptor takes nothing now.
    /// * [`WriteZero`](io::ErrorKind::WriteZero): it took nothing and reported no error.
    /// * [`UnexpectedEof`](io::ErrorKind::UnexpectedEof): a [file](Rope::push_file) of the rope has become shorter.
    /// * Whatever else the kernel reports, [`BrokenPipe`](io::ErrorKind::BrokenPipe) for one.
    ///
    /// After any error the rope is exactly what has not been sent, and the call can be repeated.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::Rope;
    /// use std::io::Read;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (socket, mut peer) = UnixStream::pair()?;
    /// let mut rope: Rope = ["many ", "small ", "pieces"].into_iter().collect();
    /// while !rope.is_empty() {
    ///     rope.writev_to(&socket)?;
    /// }
    /// let mut got = [0; 17];
    /// peer.read_exact(&mut got)?;
    /// assert_eq!(&got, b"many small pieces");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn writev_to<F: AsFd>(&mut self, fd: F) -> io::Result<usize> {
        Ok(self.write_some(fd.as_fd(), sys::is_stream_type::<F>())?.bytes)
    }

    /// [`writev_to`](Rope::writev_to) a descriptor that `is_stream`, or that may be anything.
    pub(crate) fn write_some(&mut self, fd: BorrowedFd<'_>, is_stream: bool) -> io::Result<Sent> {
        self.send(fd, is_stream, |iovecs| write_or_sendfile(fd, iovecs))
    }

    /// sendmsg(2): like [`writev_to`](Rope::writev_to) on a socket, with descriptors beside the bytes.
    ///
    /// The descriptors go with the first byte of this call: when it returns, they were sent, however
    /// many bytes it took. Pass `&[]` for the rest. After an error they were not. `flags` are those of
    /// sendmsg(2), such as `MSG_MORE`; usually 0. `MSG_NOSIGNAL` is always set.
    ///
    /// # Errors
    ///
    /// As for [`writev_to`](Rope::writev_to); and `InvalidInput` for descriptors with an empty rope,
    /// since they need a byte to go with, for `MSG_ZEROCOPY`, whose pages may not be reused when the
    /// call returns, and for `MSG_PROBE`, with which UDP counts bytes that it does not send.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::Rope;
    /// use std::io::{Read, Write};
    /// use std::os::fd::AsFd;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (socket, peer) = UnixStream::pair()?;
    /// let (mut here, there) = UnixStream::pair()?;
    /// Rope::from("a socket comes with this").sendmsg_to(&socket, 0, &[there.as_fd()])?;
    ///
    /// let mut rope = Rope::new();
    /// let received = rope.recvmsg_from(&peer, 0)?;
    /// let mut passed_on = UnixStream::from(received.fds.into_iter().next().unwrap());
    /// here.write_all(b"!")?;
    /// passed_on.read_exact(&mut [0])?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn sendmsg_to(&mut self, fd: impl AsFd, flags: i32, fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        check_message(self.is_empty(), flags, fds)?;
        let fd = fd.as_fd();
        let sent = self.send(fd, false, |iovecs| {
            check_files(iovecs)?;
            sys::sendmsg(fd, iovecs, flags, fds)
        })?;
        Ok(sent.bytes)
    }

    /// [`writev_to`](Rope::writev_to) until the rope is empty.
    ///
    /// # Errors
    ///
    /// As for [`writev_to`](Rope::writev_to). What was sent before is gone from the rope: after
    /// `WouldBlock`, wait until the descriptor is writable and call again.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::Rope;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (socket, _peer) = UnixStream::pair()?;
    /// let mut rope: Rope = ["many ", "small ", "pieces"].into_iter().collect();
    /// rope.write_all_to(&socket)?;
    /// assert!(rope.is_empty());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn write_all_to(&mut self, fd: impl AsFd) -> io::Result<()> {
        until_done(|| self.writev_to(&fd))
    }

    fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        is_stream: bool,
        call: impl FnOnce(&Iovecs<'_>) -> io::Result<usize>,
    ) -> io::Result<Sent> {
        let mut pace = *self.sends();
        let sent = self.cursor().offer(fd, is_stream, &mut pace, call)?;
        *self.sends() = pace;
        self.advance(sent.bytes);
        Ok(sent)
    }
}

impl<R: Borrow<Rope>> Cursor<R> {
    /// sendmsg(2), or writev(2) for what is not a socket: sends from the cursor on and moves it by as
    /// much. Returns how many bytes that were: 0 only at the end.
    ///
    /// # Errors
    ///
    /// As for [`Rope::writev_to`]. After any error the cursor stands at the first byte not sent.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::Rope;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let rope = Rope::from("to both");
    /// let (one, other) = UnixStream::pair()?;
    /// for socket in [&one, &other] {
    ///     rope.cursor().write_all_to(socket)?;
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn writev_to<F: AsFd>(&mut self, fd: F) -> io::Result<usize> {
        Ok(self.write_some(fd.as_fd(), sys::is_stream_type::<F>())?.bytes)
    }

    /// [`writev_to`](Cursor::writev_to) a descriptor that `is_stream`, or that may be anything.
    pub(crate) fn write_some(&mut self, fd: BorrowedFd<'_>, is_stream: bool) -> io::Result<Sent> {
        self.send(fd, is_stream, |iovecs| write_or_sendfile(fd, iovecs))
    }

    /// sendmsg(2): like [`writev_to`](Cursor::writev_to) on a socket, with descriptors that go with the
    /// first byte of this call; see [`Rope::sendmsg_to`].
    ///
    /// # Errors
    ///
    /// As for [`Rope::sendmsg_to`].
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::Rope;
    /// use std::os::fd::AsFd;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (socket, peer) = UnixStream::pair()?;
    /// let rope = Rope::from("with a descriptor");
    /// let mut cursor = rope.cursor();
    /// cursor.sendmsg_to(&socket, 0, &[socket.as_fd()])?;
    /// assert_eq!(cursor.remaining(), 0);
    /// assert_eq!(Rope::new().recvmsg_from(&peer, 0)?.fds.len(), 1);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn sendmsg_to(&mut self, fd: impl AsFd, flags: i32, fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        check_message(self.remaining() == 0, flags, fds)?;
        let fd = fd.as_fd();
        let sent = self.send(fd, false, |iovecs| {
            check_files(iovecs)?;
            sys::sendmsg(fd, iovecs, flags, fds)
        })?;
        Ok(sent.bytes)
    }

    /// [`writev_to`](Cursor::writev_to) until the cursor is at the end.
    ///
    /// # Errors
    ///
    /// As for [`writev_to`](Cursor::writev_to). After `WouldBlock`, wait until the descriptor is
    /// writable and call again: the cursor has moved by what was sent.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::Rope;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (socket, _peer) = UnixStream::pair()?;
    /// let rope = Rope::from("to be kept");
    /// rope.cursor().write_all_to(&socket)?;
    /// assert_eq!(rope, b"to be kept");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn write_all_to(&mut self, fd: impl AsFd) -> io::Result<()> {
        until_done(|| self.writev_to(&fd))
    }

    fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        is_stream: bool,
        call: impl FnOnce(&Iovecs<'_>) -> io::Result<usize>,
    ) -> io::Result<Sent> {
        let mut pace = *self.sends();
        let sent = self.offer(fd, is_stream, &mut pace, call)?;
        *self.sends() = pace;
        self.advance(sent.bytes);
        Ok(sent)
    }

    /// Makes the call, unless there is nothing to send, with as many bytes as `pace` tells, with [`FEW`] segments if they
    /// have more, or with all of a message. Does not move the cursor.
    #[inline]
    fn offer(
        &self,
        fd: BorrowedFd<'_>,
        is_stream: bool,
        pace: &mut Pace,
        call: impl FnOnce(&Iovecs<'_>) -> io::Result<usize>,
    ) -> io::Result<Sent> {
        let mut iovecs = Iovecs::default();
        self.gather(pace.bytes().max(self.bytes_of(FEW)), &mut iovecs);
        if iovecs.held() < self.remaining() && !is_stream && FdKind::of(fd) == FdKind::Message {
            iovecs.clear();
            self.gather(MAX_BYTES, &mut iovecs);
            check_whole(&iovecs, self.remaining(), self.rope().limits().max_iovecs)?;
        }
        if iovecs.held() == 0 {
            return Ok(Sent { bytes: 0, full: false });
        }
        match call(&iovecs)? {
            0 => {
                Err(io::Error::new(io::ErrorKind::WriteZero, "the descriptor took none of the bytes offered"))
            }
            bytes => {
                pace.note(iovecs.held(), bytes, (MIN_SEND, MAX_SEND));
                // Of a file, a call may have been offered a part of this only.
                Ok(Sent { bytes, full: bytes < iovecs.held() && shown::is_empty() })
            }
        }
    }
}

/// What a send took.
#[derive(Debug)]
#[cfg_attr(not(feature = "tokio"), allow(unreachable_pub, dead_code))] // only a readiness is cleared because of it
pub struct Sent {
    pub(crate) bytes: usize,
    /// Whether that is less than it was offered, so that a socket takes nothing more until it is writable again.
    pub(crate) full: bool,
}

/// Segments that a send names however many bytes they have: to name them costs nothing beside the call.
const FEW: usize = 16;

/// Largest page with which a spilled page is no smaller than a folio of the page cache, so that pages can be sent by
/// reference.
const MAX_PAGE: usize = 4 << 10;

/// Fewest bytes that a send offers, after calls that took less.
const MIN_SEND: usize = 4 << 10;

/// Bytes of a file go by sendfile(2), which copies nothing and reads no page into this process, unless they are (part of)
/// a message: those before and behind them by another call.
#[inline]
fn write_or_sendfile(fd: BorrowedFd<'_>, iovecs: &Iovecs<'_>) -> io::Result<usize> {
    if shown::is_empty() { write(fd, iovecs) } else { sendfile_or_write(fd, iovecs) }
}

#[inline(never)]
fn sendfile_or_write(fd: BorrowedFd<'_>, iovecs: &Iovecs<'_>) -> io::Result<usize> {
    if FdKind::of(fd) == FdKind::Message {
        check_files(iovecs)?;
        return write(fd, iovecs);
    }
    let (len, in_file) = iovecs.slices().first().map_or((0, None), |first| shown::first_part(first));
    let Some(at) = in_file else {
        return write(
            fd,
            &iovecs.until(|slice| match shown::first_part(slice) {
                (len, None) => len,
                _ => 0,
            }),
        );
    };
    let sent =
        if page_size() <= MAX_PAGE { sys::file::sendfile(fd, &at.file, at.offset, len)? } else { None };
    match sent {
        Some(count) => Ok(count),
        // The kernel does not: sent from the mapping, up to the end of the file.
        None => {
            let there = sys::file::left(&at.file, at.offset, len)?;
            let mut first = Iovecs::default();
            first.extend(iter::once(IoSlice::new(&iovecs.slices()[0][..there])), there);
            write(fd, &first)
        }
    }
}

/// Returns an error if a file has become shorter than what is sent of it from its mapping, whose last page then goes on
/// with zeros.
fn check_files(iovecs: &Iovecs<'_>) -> io::Result<()> {
    if shown::is_empty() {
        return Ok(());
    }
    for (part, in_file) in iovecs.slices().iter().flat_map(|slice| shown::parts(slice)) {
        let Some(at) = in_file else { continue };
        let left = sys::file::left(&at.file, at.offset, part.len())?;
        if left < part.len() {
            return Err(sys::file::shrunk(at.offset + left as u64));
        }
    }
    Ok(())
}

/// writev(2) on a socket raises SIGPIPE, so a socket gets sendmsg(2).
fn write(fd: BorrowedFd<'_>, iovecs: &Iovecs<'_>) -> io::Result<usize> {
    match sys::sendmsg(fd, iovecs, 0, &[]) {
        Err(error) if sys::is_no_socket(fd, &error) => sys::writev(fd, iovecs),
        done => done,
    }
}

/// A message that is sent in parts would arrive as several.
fn check_whole(iovecs: &Iovecs<'_>, len: usize, max_iovecs: usize) -> io::Result<()> {
    let held = iovecs.held();
    if held == len {
        return Ok(());
    }
    let message = format!(
        "a message of {len} bytes cannot be sent by one call: the first {max_iovecs} segments have {held} bytes; \
         finalize the rope and send the view"
    );
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

fn check_message(empty: bool, flags: i32, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if empty && !fds.is_empty() {
        let message = format!("{} descriptors, but no byte for them to go with", fds.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    sys::check_send_flags(flags)
}

fn until_done(mut send: impl FnMut() -> io::Result<usize>) -> io::Result<()> {
    while send()? > 0 {}
    Ok(())
}
