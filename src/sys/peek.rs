//! What a descriptor would deliver next, without taking it: for a receive that has no room left.
//!
//! A receive of no bytes returns 0, and so does one at the end of the stream. So that neither a limit nor a full
//! pool is taken for the end, [`peek`] answers which of the two it is:
//!
//! | descriptor | asked by | end | otherwise |
//! |---|---|---|---|
//! | stream socket, also shut down for reading | `recv` with `MSG_PEEK` | 0 | more; `WouldBlock` or waits; the socket's error |
//! | datagram, raw, seqpacket socket | the same; after a receive of 0 `poll`, `FIONREAD` and `recv` with `MSG_PEEK` | hung up or shut down, nothing left | more, or a message of no bytes |
//! | listening, unconnected | the same | never | its error: `ENOTCONN`, `EINVAL` |
//! | receive with `MSG_OOB` | nothing, since the urgent byte is beside the stream | never | more |
//! | pipe, FIFO | `poll`; if it says nothing, `tee` | no writer and nothing in it | more; `WouldBlock` or waits |
//! | pipe of packets (`O_DIRECT`) | `tee` to another pipe, which is read | as a pipe | the next packet's length |
//! | regular file of any size, memfd, block device, `/proc`, `/sys` | `pread` at the position | 0 | more; the file's error |
//! | a file without a position (`ESPIPE`): a stream of FUSE, tracefs' `trace_pipe` | `poll` | never | more; `WouldBlock` or waits |
//! | the same with `O_DIRECT` | position and `st_size` | at or behind the size | more |
//! | `/dev/null`, `zero`, `full`, `random`, `urandom` | `pread` | 0: `/dev/null` | more |
//! | terminal | `poll`, then `FIONREAD` | end of file was typed; hung up | more; `WouldBlock` or waits |
//! | eventfd, timerfd, signalfd, inotify, perf_event, other devices | `poll`, then `FIONREAD` | never, unless it is known that 0 are left | more; `WouldBlock` or waits |
//! | directory | `pread` | never | `EISDIR` |
//! | what read(2) refuses: opened with `O_WRONLY`, `O_PATH`; epoll, pidfd | `readv` of no iovecs | never | its error: `EBADF`, `EINVAL` |
//!
//! "Waits" is for descriptors without `O_NONBLOCK`. Where the kernel gives no answer, it is "more": a limit that is
//! reported one call early is better than a payload that is cut. `FIONREAD` is an `int`, wrong for files
//! beyond 2 GiB and refused by most devices, so only what has no better answer is asked for it.
//! A byte of `/proc/kmsg` cannot be looked at without taking it.
#![allow(unsafe_code)] // raw calls: what nix has of these knows neither POLLRDHUP nor 64 bits on all targets

use std::fs::{File, Metadata};
use std::io::{self, IoSliceMut, Read, Seek, SeekFrom};
use std::mem::ManuallyDrop;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{self, POLLHUP, POLLIN, POLLPRI, c_int, c_short};
use nix::sys::socket::{MsgFlags, SockType, getsockopt, recvmsg, sockopt};

use zeroize::Zeroize;

use super::errno;
#[cfg(test)]
use super::mock;
use super::platform::{self, O_DIRECT, POLLRDHUP, tee};
use super::{is_short, page_size, retry};

/// Largest block of a device that Linux knows.
const MAX_BLOCK: usize = 64 << 10;

/// What a descriptor would deliver next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing, ever.
    End,
    /// Bytes; or the kernel does not tell.
    More,
    /// No bytes from a message socket: a message without any, or the end. The receive tells which.
    NoBytes,
}

/// What the calls for receiving differ by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FdKind {
    /// A stream socket, as the type of the descriptor says.
    StreamType,
    /// A stream socket when the kernel was asked. The descriptor's number may be that of another one by now.
    Stream,
    /// A socket that keeps message boundaries: what a receive has no room for is dropped.
    Message,
    /// A seqpacket socket of another domain, such as vsock(7): the same may hold, and the kernel does not tell the length
    /// where nothing is copied. A receive is offered all reserved room.
    Records,
    /// A pipe whose writer has `O_DIRECT`: the same holds for its packets. Only what is in the pipe tells.
    Packets,
    /// As `Other`, and no pipe of packets.
    Bytes,
    /// Not a socket, or not known: read(2) serves both. It may be a pipe of packets.
    Other,
    /// A socket of which nothing is known in a sandbox: it is asked for again before each receive.
    Unknown,
}

impl FdKind {
    /// getsockopt(2), `SO_TYPE`; for seqpacket sockets `SO_DOMAIN` too, because SCTP keeps what is left of a message
    /// and those of the kernel's cryptography have none.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> FdKind {
        #[cfg(test)]
        if mock::is_set() {
            return FdKind::Other;
        }
        match FdKind::of_socket(fd) {
            Err(error) if error != Errno::ENOTSOCK && is_refused(error) => FdKind::of_next(fd),
            kind => kind.unwrap_or(FdKind::Other),
        }
    }

    fn of_socket(fd: BorrowedFd<'_>) -> nix::Result<FdKind> {
        let keeps_messages =
            || platform::domain(fd).is_ok_and(|domain| platform::MESSAGE_DOMAINS.contains(&domain));
        Ok(match getsockopt(&fd, sockopt::SockType)? {
            SockType::Stream => FdKind::Stream,
            SockType::Datagram | SockType::Raw | SockType::Rdm => FdKind::Message,
            SockType::SeqPacket if keeps_messages() => FdKind::Message,
            SockType::SeqPacket => FdKind::Records,
            _ => FdKind::Other,
        })
    }

    /// Returns whether getsockopt(2) says that `fd` keeps messages.
    pub(super) fn is_told_to_keep_messages(fd: BorrowedFd<'_>) -> bool {
        #[cfg(test)]
        if mock::is_set() {
            return false;
        }
        FdKind::of_socket(fd) == Ok(FdKind::Message)
    }

    /// The same where a sandbox forbids getsockopt(2): only a message tells its length where nothing may be copied.
    #[cold]
    fn of_next(fd: BorrowedFd<'_>) -> FdKind {
        match next_message_len(fd, libc::MSG_DONTWAIT) {
            Ok(1..) => FdKind::Message,
            Err(error) if !is_no_socket(fd, &error) => FdKind::Unknown,
            Ok(0) => FdKind::Unknown,
            Err(_) => FdKind::Other,
        }
    }

    #[inline]
    pub(crate) fn is_stream(self) -> bool {
        matches!(self, FdKind::StreamType | FdKind::Stream)
    }

    /// Returns whether a read had to ask if it is a pipe of packets, now or before.
    #[inline]
    pub(crate) fn was_asked_for_packets(self) -> bool {
        matches!(self, FdKind::Packets | FdKind::Bytes)
    }

    /// Returns whether it keeps boundaries, so that what a receive has no room for is lost.
    #[inline]
    pub(crate) fn keeps_messages(self) -> bool {
        matches!(self, FdKind::Message | FdKind::Packets)
    }
}

/// Before a read of no more than `offer` bytes from what may be no socket: whether it would cut a packet of a pipe.
///
/// ioctl(2), `FIONREAD`; for an empty pipe poll(2); for one that holds more than is read, pipe2(2) and tee(2). A pipe of bytes
/// is assumed to stay one.
///
/// # Errors
///
/// `WouldBlock` for an empty pipe that is non-blocking: a packet that comes before the read could be longer than `offer`.
/// Without descriptors for tee(2) it is left to the read.
#[cold]
pub(super) fn kind_before_read(fd: BorrowedFd<'_>, offer: usize) -> io::Result<FdKind> {
    if !super::IS_LINUX {
        return Ok(FdKind::Bytes);
    }
    let left = bytes_left(fd);
    if left.is_some_and(|left| (1..=offer).contains(&left)) {
        return Ok(FdKind::Other);
    }
    let found = as_file(fd).metadata()?;
    let is_pipe = found.file_type().is_fifo();
    let left = match left {
        Some(0) if is_pipe => {
            let waits = waits(fd)?;
            match peek_by_poll(fd, &found, waits) {
                Ok(Next::More) => bytes_left(fd),
                Err(error) if waits || !is_short(&error) => return Err(error),
                _ => Some(0),
            }
        }
        left => left,
    };
    match left {
        Some(left) if left <= offer => Ok(FdKind::Other),
        Some(_) if is_pipe => {
            // The first of these reads does not get two bytes if the packet has one; the second one drops the rest of a
            // longer packet.
            let packets = next_of(&tee(fd, 2, false)?, 2)? == 1 || {
                let copy = tee(fd, 2, false)?;
                next_of(&copy, 1)?;
                next_of(&copy, 1)? == 0
            };
            Ok(if packets { FdKind::Packets } else { FdKind::Bytes })
        }
        _ => Ok(FdKind::Bytes),
    }
}

/// fstat(2): tells the files apart that a descriptor's number stands for in turns. The kernel's inodes of pipes have 32 bits.
#[cold]
#[inline(never)]
fn file_id(fd: BorrowedFd<'_>) -> u32 {
    let Ok(found) = as_file(fd).metadata() else { return NO_FILE };
    let id = found.ino() ^ found.dev().rotate_left(32);
    u32::try_from((id ^ (id >> 32)) & u64::from(u32::MAX)).map_or(NO_FILE, |id| id.max(NO_FILE + 1))
}

const NO_FILE: u32 = 0;

/// fcntl(2): whether a read waits for bytes.
fn waits(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(!OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?).contains(OFlag::O_NONBLOCK))
}

/// Largest packet of a pipe: a page.
#[inline]
pub(super) fn max_packet() -> usize {
    page_size()
}

/// read(2) of at most `len` bytes of a pipe's copy; returns how many there were.
fn next_of(mut copy: &File, len: usize) -> io::Result<usize> {
    let mut memory = vec![0; len];
    let read = copy.read(&mut memory);
    memory.zeroize(); // the rope may be one that erases its bytes
    read
}

/// What is behind a descriptor, as a file of `std`, which has 64-bit offsets on all targets.
fn as_file(fd: BorrowedFd<'_>) -> ManuallyDrop<File> {
    // SAFETY: the descriptor is open, and this value does not close it; callers drop it before the borrow ends.
    ManuallyDrop::new(unsafe { File::from_raw_fd(fd.as_raw_fd()) })
}

/// The kind of the descriptor that a rope received from last, so that it is asked for once.
///
/// A rope does not take it over from another one: a descriptor's number is given away again when it is closed, and a
/// datagram that is read as a stream is cut. Where that happens to one rope, [`readv`](super::readv) reports it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KnownFd {
    fd: i32,
    kind: FdKind,
    /// Of `FdKind::Bytes`, the [`file_id`]: a pipe of packets behind the number must not be read in parts.
    file: u32,
    /// Whether the last receive brought bytes, but fewer than it was offered memory for.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))] // only a readiness is cleared because of it
    pub(crate) was_short: bool,
}

impl KnownFd {
    pub(crate) const NONE: KnownFd = KnownFd { fd: -1, kind: FdKind::Other, file: NO_FILE, was_short: false };

    /// Returns what `fd` is, which `is_stream` if its type says so. Else getsockopt(2), unless it is the descriptor of the
    /// last call and did not keep messages: a stream behind the number of one that does must not be read as that is, since
    /// with `MSG_TRUNC` TCP drops bytes and counts them, and tee(2) takes nothing but pipes.
    #[inline]
    pub(crate) fn kind(&mut self, fd: BorrowedFd<'_>, is_stream: bool) -> FdKind {
        let is_known = match self.kind {
            FdKind::StreamType => is_stream,
            FdKind::Message | FdKind::Packets | FdKind::Unknown => false,
            FdKind::Bytes => !is_stream && self.file != NO_FILE && self.file == file_id(fd),
            FdKind::Other => true, // a stream too, where a sandbox forbids recv(2)
            _ => !is_stream,
        };
        if self.fd != fd.as_raw_fd() || !is_known {
            let kind = if is_stream { FdKind::StreamType } else { FdKind::of(fd) };
            *self = KnownFd { fd: fd.as_raw_fd(), kind, ..KnownFd::NONE };
        }
        self.kind
    }

    /// Returns what the last descriptor is.
    #[inline]
    pub(crate) fn last(&self) -> FdKind {
        self.kind
    }

    /// Notes what a call has found out.
    #[inline]
    pub(crate) fn note(&mut self, kind: FdKind) {
        self.kind = kind;
    }

    /// Notes which file is one of bytes.
    #[cold]
    pub(crate) fn note_file(&mut self, fd: BorrowedFd<'_>) {
        if self.file == NO_FILE {
            self.file = file_id(fd);
        }
    }

    /// For the end of the stream and for errors, after which descriptors are closed.
    pub(crate) fn forget(&mut self) {
        *self = KnownFd::NONE;
    }
}

/// Whether a descriptor of type `F` is a stream socket. Of others, `BorrowedFd` among them, the kernel is asked.
#[inline]
pub(crate) fn is_stream_type<F>() -> bool {
    fn is<F, S>() -> bool {
        let id = typeid::of::<F>();
        id == typeid::of::<S>()
            || id == typeid::of::<&S>()
            || id == typeid::of::<&mut S>()
            || id == typeid::of::<&&S>()
    }
    is::<F, TcpStream>() || is::<F, UnixStream>()
}

/// Tells the end of a stream from anything else; see the table above. Takes nothing out of the descriptor.
///
/// # Errors
///
/// `WouldBlock` when nothing has come yet and the descriptor is non-blocking or `flags` has `MSG_DONTWAIT`; and
/// what a receive would report.
pub(super) fn peek(fd: BorrowedFd<'_>, flags: i32) -> io::Result<Next> {
    if flags & libc::MSG_OOB != 0 {
        return Ok(Next::More);
    }
    let mut byte = 0u8;
    let peeked = retry(|| {
        let (to, flags) = ((&raw mut byte).cast(), libc::MSG_PEEK | flags & libc::MSG_DONTWAIT);
        // SAFETY: one byte may be written to `byte`, which outlives the call.
        Errno::result(unsafe { libc::recv(fd.as_raw_fd(), to, 1, flags) })
    });
    match peeked {
        Ok(0) if FdKind::of(fd) == FdKind::Message => Ok(Next::NoBytes),
        Ok(0) => Ok(Next::End),
        Ok(_) => Ok(Next::More),
        Err(error) if is_refused(errno(&error)) => peek_file(fd, flags),
        Err(error) => Err(error),
    }
}

/// Whether a socket call failed because the descriptor is no socket, or because a seccomp filter forbids the call.
pub(super) fn is_refused(error: Errno) -> bool {
    matches!(error, Errno::ENOTSOCK | Errno::ENOSYS | Errno::EPERM | Errno::EACCES)
}

/// Whether a socket call failed because the descriptor is a pipe, a file or the like; fstat(2) where it is not clear.
pub(crate) fn is_no_socket(fd: BorrowedFd<'_>, error: &io::Error) -> bool {
    match errno(error) {
        Errno::ENOTSOCK => true,
        #[cfg(test)]
        _ if mock::is_set() => false,
        error if is_refused(error) => {
            as_file(fd).metadata().is_ok_and(|found| !found.file_type().is_socket())
        }
        _ => false,
    }
}

/// tee(2) and read(2): bytes of the next packet of a pipe; 0 at the end. Waits for one unless the pipe is non-blocking.
pub(super) fn next_packet_len(fd: BorrowedFd<'_>) -> io::Result<usize> {
    next_of(&tee(fd, max_packet(), waits(fd)?)?, max_packet())
}

/// recvmsg(2) with `MSG_PEEK`: bytes of the next message of a message socket. Waits for one unless
/// the socket is non-blocking or `flags` has `MSG_DONTWAIT`.
pub(crate) fn next_message_len(fd: BorrowedFd<'_>, flags: i32) -> io::Result<usize> {
    let flags = flags & libc::MSG_DONTWAIT;
    match retry(|| platform::message_len(fd, flags))? {
        Some(len) => Ok(len),
        None => copied_message_len(fd, flags),
    }
}

/// Memory for the first copy of a message that is made to see its length.
const COPY: usize = 4 << 10;

/// recvmsg(2) with `MSG_PEEK`: the same of a message that is copied to see its length. ICMP sockets (`SOCK_DGRAM`) and
/// those of a CAN bus return the bytes that they have copied, whatever the flags.
#[cold]
fn copied_message_len(fd: BorrowedFd<'_>, flags: i32) -> io::Result<usize> {
    let flags = MsgFlags::from_bits_retain(flags) | MsgFlags::MSG_PEEK;
    let mut len = COPY;
    loop {
        let mut memory = Vec::new();
        memory.try_reserve_exact(len)?;
        memory.resize(len, 0);
        let peeked = retry(|| {
            let mut iovecs = [IoSliceMut::new(&mut memory)];
            let message = recvmsg::<()>(fd.as_raw_fd(), &mut iovecs, None, flags)?;
            Ok((!message.flags.contains(MsgFlags::MSG_TRUNC)).then_some(message.bytes))
        });
        memory.zeroize(); // the rope may be one that erases its bytes
        match peeked? {
            Some(bytes) => return Ok(bytes),
            None => len *= 4,
        }
    }
}

/// Whether a receive of 0 bytes from a message socket was the end. If not, it was a message without bytes: such
/// messages behind the last one with bytes, of a peer that has hung up, are taken for the end.
pub(super) fn has_ended(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let hung_up = poll(fd, POLLRDHUP, AT_ONCE)? & (POLLRDHUP | POLLHUP) != 0;
    Ok(hung_up && bytes_left(fd).is_none_or(|left| left == 0) && !holds_datagram(fd)?)
}

/// Returns whether a datagram socket that was shut down holds another message, of which `FIONREAD` tells only the first
/// one's bytes. At the end Linux answers `EAGAIN`. A kernel that answers 0, as for a message without bytes, would be asked
/// for ever: there 0 is the end.
#[cold]
fn holds_datagram(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let end_is_an_error = || -> io::Result<bool> {
        let (ended, _peer) = UnixDatagram::pair()?;
        ended.shutdown(Shutdown::Read)?;
        ended.set_nonblocking(true)?;
        Ok(ended.recv(&mut [0]).is_err())
    };
    if !matches!(getsockopt(&fd, sockopt::SockType), Ok(SockType::Datagram | SockType::Raw)) {
        return Ok(false);
    }
    match peek(fd, libc::MSG_DONTWAIT) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        next => Ok(next? == Next::More || end_is_an_error().unwrap_or(false)),
    }
}

/// What is no socket, or may not be asked as one.
fn peek_file(fd: BorrowedFd<'_>, flags: i32) -> io::Result<Next> {
    // SAFETY: names no memory. The kernel checks that the descriptor can be read, and does nothing else.
    Errno::result(unsafe { libc::readv(fd.as_raw_fd(), ptr::null(), 0) })?;
    let found = as_file(fd).metadata()?;
    if has_position(&found) {
        match position(fd).and_then(|position| peek_at(fd, position)) {
            Err(error) if error.raw_os_error() == Some(libc::ESPIPE) => {}
            next => return next,
        }
    }
    let waits = flags & libc::MSG_DONTWAIT == 0 && waits(fd)?;
    peek_by_poll(fd, &found, waits)
}

/// Whether pread(2) takes nothing out of what is behind the descriptor. A device may ignore the position, so of
/// those only memory devices are asked, mem(4).
fn has_position(found: &Metadata) -> bool {
    let kind = found.file_type();
    let is_file = kind.is_file() || kind.is_block_device() || kind.is_dir();
    is_file || kind.is_char_device() && platform::is_memory_device(found.rdev())
}

/// Whether a read failed because the file is open with `O_DIRECT`, and the address, the length or the position is no
/// multiple of its blocks: fcntl(2), fstat(2).
#[cold]
pub(crate) fn needs_alignment(fd: BorrowedFd<'_>, error: &io::Error) -> bool {
    let is_direct = |status| OFlag::from_bits_retain(status).intersects(O_DIRECT);
    let is_file = |found: Metadata| found.is_file() || found.file_type().is_block_device();
    error.raw_os_error() == Some(libc::EINVAL)
        && fcntl(fd, FcntlArg::F_GETFL).is_ok_and(is_direct)
        && as_file(fd).metadata().is_ok_and(is_file)
}

/// fstat(2): bytes of which a read with `O_DIRECT` takes multiples; a page, unless the device has larger blocks.
pub(crate) fn direct_block(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let told = usize::try_from(as_file(fd).metadata()?.blksize()).unwrap_or(0);
    // What a file system would rather read than it has to is more, or no power of two.
    let is_block = told.is_power_of_two() && told <= MAX_BLOCK;
    Ok(if is_block { told.max(page_size()) } else { page_size() })
}

/// lseek(2): the position of a file.
pub(crate) fn position(fd: BorrowedFd<'_>) -> io::Result<u64> {
    as_file(fd).stream_position()
}

/// lseek(2): moves the position of a file.
pub(crate) fn set_position(fd: BorrowedFd<'_>, position: u64) -> io::Result<()> {
    as_file(fd).seek(SeekFrom::Start(position)).map(drop)
}

/// Most bytes that the kernel may be asked for from an offset on, since it refuses what would end behind the largest one;
/// at least 1.
pub(crate) fn max_at(offset: u64) -> usize {
    let left = END_OF_OFFSETS.saturating_sub(offset).max(1);
    usize::try_from(left).unwrap_or(usize::MAX)
}

/// Where the longest file there can be ends.
const END_OF_OFFSETS: u64 = i64::MAX as u64;

/// # Errors
///
/// `EINVAL` for an offset at which no file has a byte.
pub(super) fn to_position(offset: u64) -> nix::Result<i64> {
    i64::try_from(offset).ok().filter(|_| offset < END_OF_OFFSETS).ok_or(Errno::EINVAL)
}

/// pread(2): whether a file ends at or before an offset.
///
/// # Errors
///
/// `ESPIPE` for a pipe or a socket; `EINVAL` for an offset of 2^63 - 1 or more.
pub(crate) fn at_end_of_file(fd: BorrowedFd<'_>, offset: u64) -> io::Result<bool> {
    to_position(offset)?;
    Ok(peek_at(fd, offset)? == Next::End)
}

/// Bytes of a file that are asked for to see whether it has any. Some files of `/sys` have none for who asks for one.
const PEEK: usize = 4 << 10;

/// pread(2).
fn peek_at(fd: BorrowedFd<'_>, position: u64) -> io::Result<Next> {
    let (file, mut memory) = (as_file(fd), [0; PEEK]);
    let read = loop {
        match file.read_at(&mut memory, position) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read,
        }
    };
    memory.zeroize(); // the rope may be one that erases its bytes
    match read {
        Ok(0) => Ok(Next::End),
        Ok(_) => Ok(Next::More),
        // `O_DIRECT`, or a file of records.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Ok(if (1..=position).contains(&file.metadata()?.len()) { Next::End } else { Next::More })
        }
        Err(error) => Err(error),
    }
}

/// poll(2), and what tells more where that is not enough.
fn peek_by_poll(fd: BorrowedFd<'_>, found: &Metadata, waits: bool) -> io::Result<Next> {
    let is_pipe = found.file_type().is_fifo();
    let mut ready = poll(fd, POLLIN | POLLPRI, AT_ONCE)?;
    if ready == 0 {
        if is_pipe && has_no_writer(fd)? {
            return Ok(Next::End);
        }
        if !waits {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        ready = poll(fd, POLLIN | POLLPRI, FOR_EVER)?;
    }
    // A descriptor of the kernel's own kinds may say so for another reason: that of a performance counter does.
    let hangs_up = is_pipe || found.file_type().is_char_device();
    let hung_up = hangs_up && ready & POLLHUP != 0;
    Ok(match ready & (POLLIN | POLLPRI) {
        0 if hung_up => Next::End,
        // Of a file, `FIONREAD` tells its size less its position, and this one has no position.
        POLLIN if !is_pipe && !found.is_file() => match bytes_left(fd) {
            Some(0) => Next::End,
            None if hung_up => Next::End,
            _ => Next::More,
        },
        _ => Next::More,
    })
}

const AT_ONCE: c_int = 0;
const FOR_EVER: c_int = -1;

/// poll(2). Not that of nix, which does not know `POLLRDHUP`.
fn poll(fd: BorrowedFd<'_>, events: c_short, timeout: c_int) -> io::Result<c_short> {
    let mut polled = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one such struct, which outlives the call.
    retry(|| Errno::result(unsafe { libc::poll(&raw mut polled, 1, timeout) }))?;
    Ok(polled.revents)
}

/// ioctl(2), `FIONREAD`. Of a seqpacket socket these are the bytes of all messages, of others not.
fn bytes_left(fd: BorrowedFd<'_>) -> Option<usize> {
    let mut left = 0;
    // SAFETY: FIONREAD writes one int, and `left` is one.
    let done = retry(|| Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut left) }));
    done.ok().and_then(|_| usize::try_from(left).ok())
}

/// tee(2): whether reading from this empty pipe returns 0. poll(2) does not tell before the first writer has come.
///
/// # Errors
///
/// When there is no descriptor or memory for the copy. Where a sandbox forbids the calls there is a writer.
fn has_no_writer(fd: BorrowedFd<'_>) -> io::Result<bool> {
    match tee(fd, 1, false).and_then(|copy| next_of(&copy, 1)) {
        Ok(copied) => Ok(copied == 0),
        Err(error) if is_short(&error) => Err(error),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn streams_are_known_by_their_type() {
        assert!(is_stream_type::<TcpStream>() && is_stream_type::<&TcpStream>());
        assert!(is_stream_type::<UnixStream>() && is_stream_type::<&&UnixStream>());
        assert!(!is_stream_type::<&UdpSocket>() && !is_stream_type::<BorrowedFd<'_>>());
    }
}
