//! The calls that move payload: `readv`, `recvmsg`, `writev`, `sendmsg`.
#![allow(unsafe_code)] // raw calls: nix has no vectored read into uninitialised memory

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags};

use super::iovec::{Iovecs, UninitIovec, offered};
#[cfg(test)]
use super::mock;

/// Most descriptors that the kernel passes in one message: `SCM_MAX_FD`, unix(7).
const MAX_FDS: usize = 253;

/// Words of ancillary data in one message: a full load of descriptors and some to spare.
const CONTROL_WORDS: usize = MAX_FDS.div_ceil(2) + 32;

/// What one [`Rope::recvmsg_from`](crate::Rope::recvmsg_from) brought.
///
/// # Examples
///
/// ```
/// use ropewalk::Rope;
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
///
/// let (mut here, there) = UnixStream::pair()?;
/// here.write_all(b"hello")?;
/// let received = Rope::new().recvmsg_from(&there, 0)?;
/// assert_eq!((received.bytes, received.fds.len(), received.truncated), (5, 0, false));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes appended to the rope; 0 is the end of the stream.
    pub bytes: usize,
    /// Descriptors that came with them (`SCM_RIGHTS`), close-on-exec, in the sender's order.
    pub fds: Vec<OwnedFd>,
    /// Whether the kernel dropped something for want of room: the rest of a datagram (`MSG_TRUNC`)
    /// or descriptors and other ancillary data (`MSG_CTRUNC`).
    pub truncated: bool,
}

/// readv(2). Into a single iovec recv(2), or read(2) from what turns out to be no `socket`: these are the same
/// and cost the kernel less.
#[inline]
pub(crate) fn readv(
    fd: BorrowedFd<'_>,
    iovecs: &mut [UninitIovec<'_>],
    socket: &mut bool,
) -> io::Result<usize> {
    let offer = offered(iovecs);
    let count = retry(|| {
        #[cfg(test)]
        if let Some(answer) = mock::read(iovecs) {
            return answer;
        }
        if let [iovec] = iovecs {
            return read(fd, iovec, socket);
        }
        let (base, len) = (iovecs.as_mut_ptr().cast::<libc::iovec>(), count_of(iovecs.len()));
        // SAFETY: a `UninitIovec` is a transparent iovec over memory that it borrows mutably, so the kernel
        // may write all of it; uninitialised bytes are only written, never read.
        Errno::result(unsafe { libc::readv(fd.as_raw_fd(), base, len) }).map(isize::unsigned_abs)
    })?;
    within_offer(count, offer, "readv")
}

#[inline]
fn read(fd: BorrowedFd<'_>, iovec: &mut UninitIovec<'_>, socket: &mut bool) -> nix::Result<usize> {
    let (fd, to, len) = (fd.as_raw_fd(), iovec.as_mut_ptr().cast(), iovec.len());
    if *socket {
        // SAFETY: the iovec is memory that it borrows mutably, of this length.
        match Errno::result(unsafe { libc::recv(fd, to, len, 0) }) {
            Err(Errno::ENOTSOCK) => *socket = false,
            received => return received.map(isize::unsigned_abs),
        }
    }
    // SAFETY: as above.
    Errno::result(unsafe { libc::read(fd, to, len) }).map(isize::unsigned_abs)
}

/// recvmsg(2), with `MSG_CMSG_CLOEXEC`.
pub(crate) fn recvmsg(
    fd: BorrowedFd<'_>,
    iovecs: &mut [UninitIovec<'_>],
    flags: i32,
) -> io::Result<Received> {
    let offer = offered(iovecs);
    let mut control = [0u64; CONTROL_WORDS];
    let mut header = empty_header();
    header.msg_iov = iovecs.as_mut_ptr().cast();
    header.msg_iovlen = iovecs.len();
    header.msg_control = control.as_mut_ptr().cast();
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    let count = retry(|| {
        #[cfg(test)]
        if let Some(answer) = mock::read(iovecs) {
            header.msg_controllen = 0;
            return answer;
        }
        header.msg_controllen = size_of_val(&control);
        // SAFETY: the header points to the iovecs, which are borrowed mutably, and to `control`,
        // both alive until the end of this function; the lengths are theirs.
        Errno::result(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) })
            .map(isize::unsigned_abs)
    })?;
    let fds = owned_fds(&header);
    let truncated = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    Ok(Received { bytes: within_offer(count, offer, "recvmsg")?, fds, truncated })
}

/// writev(2), for whatever is not a socket.
pub(crate) fn writev(fd: BorrowedFd<'_>, iovecs: &Iovecs<'_>) -> io::Result<usize> {
    let slices = iovecs.slices();
    let count = retry(|| {
        #[cfg(test)]
        if let Some(answer) = mock::write(slices) {
            return answer;
        }
        nix::sys::uio::writev(fd, slices)
    })?;
    within_offer(count, iovecs.held(), "writev")
}

/// sendmsg(2), or send(2) of a single slice, with `MSG_NOSIGNAL`.
pub(crate) fn sendmsg(
    fd: BorrowedFd<'_>,
    iovecs: &Iovecs<'_>,
    flags: i32,
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let slices = iovecs.slices();
    let flags = MsgFlags::from_bits_retain(flags) | MsgFlags::MSG_NOSIGNAL;
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[] } else { &rights[..] };
    let count = retry(|| {
        #[cfg(test)]
        if let Some(answer) = mock::write(slices) {
            return answer;
        }
        if let ([slice], []) = (slices, control) {
            return nix::sys::socket::send(fd.as_raw_fd(), slice, flags);
        }
        nix::sys::socket::sendmsg::<()>(fd.as_raw_fd(), slices, control, flags, None)
    })?;
    within_offer(count, iovecs.held(), "sendmsg")
}

/// Refuses flags with which bytes would be received twice, or be counted but not there.
pub(crate) fn check_recv_flags(flags: i32) -> io::Result<()> {
    check_flags(
        flags,
        libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_ERRQUEUE,
        "MSG_PEEK, MSG_TRUNC and MSG_ERRQUEUE",
    )
}

/// Refuses `MSG_ZEROCOPY`, with which the kernel reads the pages after the call has returned.
pub(crate) fn check_send_flags(flags: i32) -> io::Result<()> {
    check_flags(flags, libc::MSG_ZEROCOPY, "MSG_ZEROCOPY")
}

fn check_flags(flags: i32, refused: i32, names: &str) -> io::Result<()> {
    if flags & refused == 0 {
        return Ok(());
    }
    let message = format!("flags {flags:#x}: {names} cannot be used with a rope");
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

/// Whether `sendmsg` failed because the descriptor is a pipe, a file or the like.
pub(crate) fn is_refused_as_no_socket(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOTSOCK)
}

/// recv(2) with `MSG_PEEK`, else poll(2) and `FIONREAD`: whether the stream has ended. Takes nothing out of it.
///
/// # Errors
///
/// `WouldBlock` when the descriptor is non-blocking, or `flags` has `MSG_DONTWAIT`, and nothing has come yet.
pub(crate) fn at_end_of_stream(fd: BorrowedFd<'_>, flags: i32) -> io::Result<bool> {
    let flags = libc::MSG_PEEK | flags & libc::MSG_DONTWAIT;
    let mut byte = 0u8;
    let peeked = retry(|| {
        // SAFETY: one byte may be written to `byte`, which outlives the call.
        Errno::result(unsafe { libc::recv(fd.as_raw_fd(), (&raw mut byte).cast(), 1, flags) })
    });
    match peeked {
        Ok(count) => Ok(count == 0),
        Err(error) if is_refused_as_no_socket(&error) => nothing_left(fd),
        Err(error) => Err(error),
    }
}

/// The same for pipes and files, which cannot be peeked into.
fn nothing_left(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL)?;
    let timeout = if flags & libc::O_NONBLOCK == 0 { PollTimeout::NONE } else { PollTimeout::ZERO };
    let mut ready = [PollFd::new(fd, PollFlags::POLLIN)];
    if retry(|| poll(&mut ready, timeout))? == 0 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let mut left = 0;
    // SAFETY: FIONREAD writes one int, ioctl_tty(2), and `left` is one.
    retry(|| Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut left) }))?;
    Ok(left == 0)
}

/// Takes ownership of every descriptor in the ancillary data, so that none can leak.
fn owned_fds(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled the control data that `header` describes.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a header that lies whole in that data.
    while let Some(message) = unsafe { next.as_ref() } {
        if message.cmsg_level == libc::SOL_SOCKET && message.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: `message` is one of those headers; its data follows it.
            let data = unsafe { libc::CMSG_DATA(next) };
            let bytes = message.cmsg_len - data.addr().wrapping_sub(next.addr());
            for at in 0..bytes / size_of::<RawFd>() {
                // SAFETY: the kernel wrote `cmsg_len` bytes, all of them descriptors.
                let raw = unsafe { data.cast::<RawFd>().add(at) };
                // SAFETY: one of them, which may not be aligned.
                let raw = unsafe { ptr::read_unaligned(raw) };
                // SAFETY: SCM_RIGHTS gave this process the descriptor, and nobody else knows of it.
                fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
        // SAFETY: `next` is the header just looked at, within the same data.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    fds
}

fn empty_header() -> libc::msghdr {
    // SAFETY: a C struct of integers and pointers, for which zero is valid.
    unsafe { mem::zeroed() }
}

/// Makes a call again as long as signals interrupt it.
#[inline]
pub(super) fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            done => return Ok(done?),
        }
    }
}

/// A count that the kernel cannot have meant would move the position past the data.
#[inline]
fn within_offer(count: usize, offer: usize, call: &str) -> io::Result<usize> {
    if count <= offer { Ok(count) } else { Err(beyond_offer(count, offer, call)) }
}

#[cold]
fn beyond_offer(count: usize, offer: usize, call: &str) -> io::Error {
    io::Error::other(format!("{call} reported {count} bytes, but only {offer} were offered"))
}

fn count_of(iovecs: usize) -> i32 {
    i32::try_from(iovecs).unwrap_or(i32::MAX)
}
