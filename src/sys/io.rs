//! The calls that move payload: `readv`, `recvmsg`, `writev`, `sendmsg`.
#![allow(unsafe_code)] // raw calls: nix has no vectored read into uninitialised memory

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::slice;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags};

use super::iovec::{Iovecs, UninitIovec, offered};
#[cfg(test)]
use super::mock;
use super::peek::{
    FdKind, Next, has_ended, is_refused, kind_before_read, max_packet, next_message_len, next_packet_len,
    peek, to_position,
};
use super::platform::{
    self, MSG_CMSG_CLOEXEC, MSG_ERRQUEUE, MSG_NOSIGNAL, MSG_PROBE, MSG_TELL_LEN, MSG_ZEROCOPY, SCM_PIDFD,
    SOL_UDP, UDP_GRO, preadv64,
};
use super::{errno, retry};

/// Most descriptors that the kernel passes in one message: `SCM_MAX_FD`, unix(7).
const MAX_FDS: usize = 253;

/// Words of ancillary data in one message: a full load of descriptors, and 3 KiB for credentials, a pidfd, timestamps,
/// a security label and whatever else the caller's socket options ask for.
const CONTROL_WORDS: usize = MAX_FDS.div_ceil(2) + 384;

type Control = [MaybeUninit<u64>; CONTROL_WORDS];

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
#[non_exhaustive]
pub struct Received {
    /// Bytes appended to the rope. 0 is the end of the stream, or a message without bytes: see `end`.
    pub bytes: usize,
    /// Descriptors that came with them (`SCM_RIGHTS`), close-on-exec, in the sender's order.
    pub fds: Vec<OwnedFd>,
    /// The sender's process, close-on-exec, where the socket has `SO_PASSPIDFD`.
    pub pidfd: Option<OwnedFd>,
    /// Bytes of each datagram that the kernel merged into these, where the socket has `UDP_GRO`; the last one may be
    /// shorter. `None` for a single datagram.
    pub gro_size: Option<usize>,
    /// Whether the kernel dropped something for want of room: the rest of a datagram (`MSG_TRUNC`)
    /// or descriptors and other ancillary data (`MSG_CTRUNC`).
    pub truncated: bool,
    /// Whether the stream has ended: nothing was received, and nothing will be. A peer that hangs up behind messages
    /// without bytes has ended with the first of these, since the kernel does not tell them from the end.
    pub end: bool,
}

/// readv(2); with one iovec recv(2) or read(2), which are the same and cost the kernel less. From a message
/// socket recvmsg(2), until a message has bytes: 0 is the end of the stream.
///
/// A socket that a seccomp filter allows no recv(2) on turns into [`FdKind::Other`].
///
/// # Errors
///
/// * `InvalidData` for a message that was cut, because it is longer than what was offered: see
///   [`next_message_len`](super::next_message_len).
/// * `InvalidInput` from a pipe that turned out to be one of packets, with `kind` changed: nothing was read, since a
///   packet may be longer than what was offered.
#[inline]
pub(crate) fn readv(
    fd: BorrowedFd<'_>,
    iovecs: &mut [UninitIovec<'_>],
    kind: &mut FdKind,
) -> io::Result<usize> {
    if *kind == FdKind::Message {
        return read_message(fd, iovecs);
    }
    let offer = offered(iovecs);
    if may_be_packets(*kind, iovecs) && offer < max_packet() {
        check_packets(fd, offer, kind)?;
    }
    let count = retry(|| {
        #[cfg(test)]
        if let Some(answer) = mock::read(iovecs) {
            return answer;
        }
        if let [iovec] = iovecs {
            return read(fd, iovec, kind);
        }
        let (base, len) = (iovecs.as_mut_ptr().cast::<libc::iovec>(), count_of(iovecs.len()));
        // SAFETY: a `UninitIovec` is a transparent iovec over memory that it borrows mutably, so the kernel
        // may write all of it; uninitialised bytes are only written, never read.
        Errno::result(unsafe { libc::readv(fd.as_raw_fd(), base, len) }).map(isize::unsigned_abs)
    })?;
    if (count == 0 || count == offer) && !matches!(*kind, FdKind::StreamType | FdKind::Packets) {
        return check_kind(fd, iovecs, count, kind);
    }
    within_offer(count, offer, "readv")
}

/// Returns whether a read would cut a packet of a pipe that has this number by now. recv(2) does not.
#[inline]
fn may_be_packets(kind: FdKind, iovecs: &[UninitIovec<'_>]) -> bool {
    match kind {
        FdKind::Other | FdKind::Records => true,
        FdKind::Stream => iovecs.len() > 1,
        _ => false,
    }
}

/// After what may be the end, or a part of a message: asks the kernel whether the number of a closed stream is that of a
/// message socket now.
///
/// # Errors
///
/// `InvalidData` for a message that may have been cut.
#[inline(never)]
fn check_kind(
    fd: BorrowedFd<'_>,
    iovecs: &mut [UninitIovec<'_>],
    count: usize,
    kind: &mut FdKind,
) -> io::Result<usize> {
    let offer = offered(iovecs);
    if offer == 0 || !FdKind::is_told_to_keep_messages(fd) {
        return Ok(count);
    }
    *kind = FdKind::Message;
    if count == 0 {
        return read_message(fd, iovecs);
    }
    let message =
        format!("a message of {count} bytes or more was cut to the {offer} that there was room for");
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}

/// preadv(2): reads from an offset of a file, whose position stays.
///
/// # Errors
///
/// `ESPIPE` for a pipe or a socket; `EINVAL` for an offset of 2^63 - 1 or more, or where it offers more than
/// [`max_at`](super::max_at).
pub(crate) fn preadv(fd: BorrowedFd<'_>, iovecs: &mut [UninitIovec<'_>], offset: u64) -> io::Result<usize> {
    let offer = offered(iovecs);
    let at = to_position(offset)?;
    let count = retry(|| {
        #[cfg(test)]
        if let Some(answer) = mock::read(iovecs) {
            return answer;
        }
        let (base, len) = (iovecs.as_mut_ptr().cast::<libc::iovec>(), count_of(iovecs.len()));
        // SAFETY: a `UninitIovec` is a transparent iovec over memory that it borrows mutably, so the kernel
        // may write all of it; uninitialised bytes are only written, never read.
        Errno::result(unsafe { preadv64(fd.as_raw_fd(), base, len, at) }).map(isize::unsigned_abs)
    })?;
    within_offer(count, offer, "preadv")
}

#[cold]
fn check_packets(fd: BorrowedFd<'_>, offer: usize, kind: &mut FdKind) -> io::Result<()> {
    #[cfg(test)]
    if mock::is_set() {
        return Ok(());
    }
    match kind_before_read(fd, offer)? {
        FdKind::Packets => {
            *kind = FdKind::Packets;
            return Err(io::ErrorKind::InvalidInput.into());
        }
        found if !matches!(*kind, FdKind::Stream | FdKind::Records) => *kind = found,
        _ => {}
    }
    Ok(())
}

#[inline]
fn read(fd: BorrowedFd<'_>, iovec: &mut UninitIovec<'_>, kind: &mut FdKind) -> nix::Result<usize> {
    if kind.is_stream() {
        let (to, len) = (iovec.as_mut_ptr().cast(), iovec.len());
        // SAFETY: the iovec is memory that it borrows mutably, of this length.
        match Errno::result(unsafe { libc::recv(fd.as_raw_fd(), to, len, 0) }) {
            Err(error) if is_refused(error) => return read_refused(fd, iovec, kind),
            received => return received.map(isize::unsigned_abs),
        }
    }
    read_file(fd, iovec)
}

#[inline]
fn read_file(fd: BorrowedFd<'_>, iovec: &mut UninitIovec<'_>) -> nix::Result<usize> {
    let (to, len) = (iovec.as_mut_ptr().cast(), iovec.len());
    // SAFETY: the iovec is memory that it borrows mutably, of this length.
    Errno::result(unsafe { libc::read(fd.as_raw_fd(), to, len) }).map(isize::unsigned_abs)
}

/// After recv(2) was refused: the number may be that of a pipe of packets by now.
#[cold]
fn read_refused(fd: BorrowedFd<'_>, iovec: &mut UninitIovec<'_>, kind: &mut FdKind) -> nix::Result<usize> {
    *kind = FdKind::Other;
    if iovec.len() < max_packet() {
        check_packets(fd, iovec.len(), kind).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Errno::EAGAIN,
            io::ErrorKind::InvalidInput => Errno::EINVAL,
            _ => errno(&error),
        })?;
    }
    read_file(fd, iovec)
}

#[inline(never)]
fn read_message(fd: BorrowedFd<'_>, iovecs: &mut [UninitIovec<'_>]) -> io::Result<usize> {
    let offer = offered(iovecs);
    loop {
        let (len, header) = recvmsg_raw(fd, iovecs, &mut [], MSG_TELL_LEN)?;
        check_whole(len, offer, &header)?;
        if len > 0 || has_ended(fd)? {
            return Ok(len);
        }
    }
}

/// # Errors
///
/// `InvalidData` if a message was cut.
fn check_whole(len: usize, offer: usize, header: &libc::msghdr) -> io::Result<()> {
    if len <= offer && header.msg_flags & libc::MSG_TRUNC == 0 {
        return Ok(());
    }
    let len = if len > offer { len.to_string() } else { format!("more than {offer}") };
    let message = format!("a message of {len} bytes was cut to the {offer} that there was room for");
    Err(io::Error::new(io::ErrorKind::InvalidData, message))
}

/// recvmsg(2) of a message that has no bytes, or the end of the stream; returns whether it was the end.
///
/// # Errors
///
/// `InvalidData` if it was another message, because another reader took the one that was looked at.
fn take_empty(fd: BorrowedFd<'_>, flags: i32) -> io::Result<bool> {
    let (len, header) = recvmsg_raw(fd, &mut [], &mut [], flags | MSG_TELL_LEN)?;
    check_whole(len, 0, &header)?;
    Ok(FdKind::of(fd) != FdKind::Message || has_ended(fd)?)
}

/// recvmsg(2), with `MSG_CMSG_CLOEXEC`. Without iovecs it takes a message that has no bytes.
pub(crate) fn recvmsg(
    fd: BorrowedFd<'_>,
    iovecs: &mut [UninitIovec<'_>],
    flags: i32,
) -> io::Result<Received> {
    let offer = offered(iovecs);
    let mut control: Control = [MaybeUninit::uninit(); CONTROL_WORDS];
    let (count, header) = match recvmsg_raw(fd, iovecs, &mut control, flags | MSG_CMSG_CLOEXEC) {
        Err(error) if refuses_close_on_exec(fd, &error) => recvmsg_raw(fd, iovecs, &mut control, flags)?,
        received => received?,
    };
    let mut received = Received::default();
    read_control(&header, &mut received);
    received.truncated = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    received.bytes = within_offer(count, offer, "recvmsg")?;
    let nothing = count == 0 && header.msg_controllen == 0;
    received.end = nothing && (FdKind::of(fd) != FdKind::Message || has_ended(fd)?);
    Ok(received)
}

/// Whether a receive may have failed because of `MSG_CMSG_CLOEXEC`, which packet(7) sockets refuse. Only Unix sockets pass
/// descriptors, and they know it.
#[cold]
fn refuses_close_on_exec(fd: BorrowedFd<'_>, error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
        && platform::domain(fd).is_ok_and(|domain| domain != libc::AF_UNIX)
}

/// Bytes of the next message or packet that has some; 0 at the end of the stream. Messages without bytes are taken.
/// Waits for one unless the descriptor is non-blocking.
pub(crate) fn next_with_bytes(fd: BorrowedFd<'_>, kind: FdKind) -> io::Result<usize> {
    if kind == FdKind::Packets {
        return next_packet_len(fd);
    }
    loop {
        let len = next_message_len(fd, 0)?;
        if len > 0 || take_empty(fd, 0)? {
            return Ok(len);
        }
    }
}

/// recvmsg(2), as [`recvmsg`], into memory that is initialised.
pub(crate) fn recvmsg_into(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    recvmsg(fd, &mut [as_uninit(buffer)], 0)
}

/// For a call that writes nothing but initialised bytes.
fn as_uninit(buffer: &mut [u8]) -> UninitIovec<'_> {
    let (start, len) = (buffer.as_mut_ptr().cast::<MaybeUninit<u8>>(), buffer.len());
    // SAFETY: the same memory, borrowed mutably; the kernel writes nothing but initialised bytes there.
    UninitIovec::new(unsafe { slice::from_raw_parts_mut(start, len) }, len)
}

/// preadv(2), as [`preadv`], into memory that is initialised.
pub(crate) fn pread_into(fd: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    preadv(fd, &mut [as_uninit(buffer)], offset)
}

/// The header points to what it was made of; only its flags and control data may be looked at.
fn recvmsg_raw(
    fd: BorrowedFd<'_>,
    iovecs: &mut [UninitIovec<'_>],
    control: &mut [MaybeUninit<u64>],
    flags: i32,
) -> io::Result<(usize, libc::msghdr)> {
    // SAFETY: a C struct of integers and pointers, for which zero is valid.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    // macOS refuses a call without an iovec.
    let mut none = [UninitIovec::new(&mut [], 0)];
    let iovecs = if iovecs.is_empty() { &mut none } else { iovecs };
    header.msg_iov = iovecs.as_mut_ptr().cast();
    header.msg_iovlen = iovecs.len() as _;
    header.msg_control = control.as_mut_ptr().cast();
    let count = retry(|| {
        #[cfg(test)]
        if let Some(answer) = mock::read(iovecs) {
            header.msg_controllen = 0;
            return answer;
        }
        header.msg_controllen = size_of_val(control) as _;
        // SAFETY: the header points to the iovecs and to `control`, both borrowed mutably for longer than the
        // call; the lengths are theirs.
        Errno::result(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) })
            .map(isize::unsigned_abs)
    })?;
    Ok((count, header))
}

/// Whether the stream has ended; [`peek`] that takes messages without bytes.
pub(crate) fn at_end_of_stream(fd: BorrowedFd<'_>, flags: i32) -> io::Result<bool> {
    loop {
        match peek(fd, flags)? {
            Next::NoBytes if !take_empty(fd, flags)? => {}
            next => return Ok(next != Next::More),
        }
    }
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
    let flags = MsgFlags::from_bits_retain(flags | MSG_NOSIGNAL);
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[] } else { &rights[..] };
    platform::raise_no_sigpipe(fd);
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
        libc::MSG_PEEK | libc::MSG_TRUNC | MSG_ERRQUEUE,
        "MSG_PEEK, MSG_TRUNC and MSG_ERRQUEUE",
    )
}

/// Refuses `MSG_ZEROCOPY`, with which the kernel reads the pages after the call has returned, and `MSG_PROBE`, with which
/// it counts bytes that it does not send.
pub(crate) fn check_send_flags(flags: i32) -> io::Result<()> {
    check_flags(flags, MSG_ZEROCOPY | MSG_PROBE, "MSG_ZEROCOPY and MSG_PROBE")
}

fn check_flags(flags: i32, refused: i32, names: &str) -> io::Result<()> {
    if flags & refused == 0 {
        return Ok(());
    }
    let message = format!("flags {flags:#x}: {names} cannot be used with a rope");
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

/// Takes ownership of every descriptor in the ancillary data, so that none can leak, and notes what tells datagrams apart.
fn read_control(header: &libc::msghdr, received: &mut Received) {
    // SAFETY: the kernel has filled the control data that `header` describes.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a header that lies whole in that data.
    while let Some(message) = unsafe { next.as_ref() } {
        // Socket options other than `SO_PASSRIGHTS` and `SO_PASSPIDFD` bring no descriptors.
        if message.cmsg_level == libc::SOL_SOCKET
            && [libc::SCM_RIGHTS, SCM_PIDFD].contains(&message.cmsg_type)
        {
            // SAFETY: `next` is such a header, and the kernel has made these descriptors for this process.
            let fds = unsafe { fds_behind(next) };
            if message.cmsg_type == libc::SCM_RIGHTS {
                received.fds.extend(fds);
            } else {
                received.pidfd = fds.last();
            }
        } else if (message.cmsg_level, message.cmsg_type) == (SOL_UDP, UDP_GRO) {
            // SAFETY: `next` is such a header, and the data follows it.
            let data = unsafe { libc::CMSG_DATA(next) };
            // SAFETY: the data is one `int`, which may not be aligned.
            let size = unsafe { ptr::read_unaligned(data.cast::<libc::c_int>()) };
            received.gro_size = usize::try_from(size).ok();
        }
        // SAFETY: `next` is the header just looked at, within the same data.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
}

/// The descriptors in the data of a control message. Where the kernel could make none, it says -1.
///
/// # Safety
///
/// `message` is a whole control message, and all of its data is descriptors without an owner.
#[allow(clippy::unnecessary_cast)] // `cmsg_len` is a u32 on some targets
unsafe fn fds_behind(message: *const libc::cmsghdr) -> impl Iterator<Item = OwnedFd> {
    // SAFETY: the caller has such a header.
    let len = unsafe { (*message).cmsg_len } as usize;
    // SAFETY: the data follows the header.
    let data = unsafe { libc::CMSG_DATA(message) }.cast_const();
    let count = len.saturating_sub(data.addr() - message.addr()) / size_of::<RawFd>();
    (0..count).filter_map(move |at| {
        // SAFETY: the kernel wrote `count` descriptors.
        let raw = unsafe { data.cast::<RawFd>().add(at) };
        // SAFETY: one of them, which may not be aligned.
        let raw = unsafe { ptr::read_unaligned(raw) };
        // SAFETY: the caller gives the descriptor away.
        let fd = (raw >= 0).then(|| unsafe { OwnedFd::from_raw_fd(raw) });
        fd.inspect(platform::close_on_exec)
    })
}

/// A count that the kernel cannot have meant would move the position past the data.
#[inline]
pub(super) fn within_offer(count: usize, offer: usize, call: &str) -> io::Result<usize> {
    if count <= offer { Ok(count) } else { Err(beyond_offer(count, offer, call)) }
}

#[cold]
fn beyond_offer(count: usize, offer: usize, call: &str) -> io::Error {
    io::Error::other(format!("{call} reported {count} bytes, but only {offer} were offered"))
}

fn count_of(iovecs: usize) -> i32 {
    i32::try_from(iovecs).unwrap_or(i32::MAX)
}
