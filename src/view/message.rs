//! A sealed payload through a Unix socket: one message, which is sent and received whole or not at all.
//!
//! ```text
//!  0        8       10      12      16              24
//!  │"ropewalk"│version│ how │  0    │ bytes         │ the bytes, if `how` is COPIED
//!   8 bytes    u16     u16   u32     u64             else one descriptor (SCM_RIGHTS)
//! ```
//!
//! Numbers are little-endian. A message is one packet of the kernel: its sender needs no state when the socket would block.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use super::Sealed;
use super::sealed::COPY_MAX;
use crate::sys::iovec::Iovecs;
use crate::sys::space::Space;
use crate::sys::{self, Received, seal};

const HEADER: usize = 24;
const MAGIC: [u8; 8] = *b"ropewalk";
const VERSION: u16 = 1;

/// More bytes than any file in memory has.
const MAX_PASSED: u64 = 1 << 46;

/// How the bytes come: beside the message, in a memfd, or in it.
const PASSED: u16 = 0;
const COPIED: u16 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    copied: bool,
    len: usize,
}

impl Header {
    fn encode(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..10].copy_from_slice(&VERSION.to_le_bytes());
        header[10..12].copy_from_slice(&if self.copied { COPIED } else { PASSED }.to_le_bytes());
        header[16..].copy_from_slice(&(self.len as u64).to_le_bytes());
        header
    }

    /// Reads the first [`HEADER`] bytes of a message.
    fn decode(message: &[u8]) -> io::Result<Header> {
        let Some(header) = message.first_chunk::<HEADER>() else {
            return Err(invalid(format!("a message of {} bytes, {HEADER} is the least", message.len())));
        };
        let number = |at: Range<usize>| header[at].iter().rfold(0, |sum, &byte| sum << 8 | u64::from(byte));
        let (version, how, len) = (number(8..10), number(10..12), number(16..24));
        if header[..8] != MAGIC {
            return Err(invalid("a message that does not begin with \"ropewalk\""));
        }
        if version != VERSION.into() {
            return Err(invalid(format!("a message of version {version}, this is version {VERSION}")));
        }
        if how != PASSED.into() && how != COPIED.into() {
            return Err(invalid(format!("a message with bytes in way {how}; version {VERSION} has 0 and 1")));
        }
        let copied = how == COPIED.into();
        let most = if copied { COPY_MAX as u64 } else { MAX_PASSED.min(isize::MAX as u64) };
        match usize::try_from(len) {
            Ok(len) if len as u64 <= most => Ok(Header { copied, len }),
            _ => Err(invalid(format!("a message with {len} bytes, at most {most} are possible"))),
        }
    }

    /// Bytes of the message.
    fn message_len(self) -> usize {
        HEADER + if self.copied { self.len } else { 0 }
    }
}

impl Sealed {
    /// sendmsg(2): sends the payload through a Unix socket, of any type, as one message. The receiver calls
    /// [`receive`](Sealed::receive).
    ///
    /// A payload of up to 4 KiB is copied into the message, since passing and mapping a memfd costs more, unless the
    /// socket's send buffer (`SO_SNDBUF`) is so small that the kernel would divide the message. Otherwise the descriptor is passed (`SCM_RIGHTS`):
    /// no copy, and O(1) for any length. The payload can be sent again, to any number of processes.
    ///
    /// All of the message is sent or none, on blocking and non-blocking sockets, so that after an error the call can be
    /// repeated. Never raises SIGPIPE.
    ///
    /// # Errors
    ///
    /// * [`WouldBlock`](io::ErrorKind::WouldBlock): a non-blocking socket takes nothing now.
    /// * [`InvalidInput`](io::ErrorKind::InvalidInput): it is no Unix socket.
    /// * What the kernel reports: `EPIPE`; `ETOOMANYREFS` while more descriptors are in sockets than `RLIMIT_NOFILE`
    ///   allows; `ENOTCONN`.
    ///
    /// # Examples
    ///
    /// ```
    /// # if cfg!(ropewalk_portable) { return Ok(()); }
    /// use ropewalk::Sealed;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (one, other) = UnixStream::pair()?;
    /// let sealed = Sealed::copy_of(&[7; 100_000])?;
    /// sealed.send(&one)?;
    /// assert_eq!(*Sealed::receive(&other)?, *sealed);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn send(&self, socket: impl AsFd) -> io::Result<()> {
        let socket = socket.as_fd();
        seal::check_unix(socket)?;
        let copied = Header { copied: true, len: self.len() };
        if self.len() <= COPY_MAX && seal::is_one_packet(socket, copied.message_len()) {
            send(socket, copied, self, &[])
        } else {
            send(socket, Header { copied: false, ..copied }, &[], &[self.as_fd()])
        }
    }

    /// recvmsg(2): receives a payload that [`send`](Sealed::send) has sent, through a Unix socket of any type.
    ///
    /// A memfd is verified as [`from_fd`](Sealed::from_fd) does, and its length compared with the message's. A payload
    /// that was copied into the message is copied into a memfd of this process. Every descriptor that comes is
    /// close-on-exec, and is closed if the message is refused.
    ///
    /// # Errors
    ///
    /// Before the message is taken, which is then still in the socket (one with `SO_PEEK_OFF` shows it again once the offset
    /// is set back):
    ///
    /// * [`WouldBlock`](io::ErrorKind::WouldBlock): no message has come to a non-blocking socket.
    /// * `EMFILE` or `ENFILE`: no descriptor is left to this process.
    /// * [`OutOfMemory`](io::ErrorKind::OutOfMemory): the announced payload does not fit into the address space
    ///   (`RLIMIT_AS`), the number of maps, or memory. A peer may announce any length: close the socket if it stays so.
    ///
    /// Of a message that was taken, and is gone:
    ///
    /// * [`InvalidData`](io::ErrorKind::InvalidData): it is not what `send` sends, its memfd is not
    ///   [acceptable](Sealed::from_fd), or another thread took the last descriptor meanwhile. A stream socket is out of
    ///   step then: close it.
    /// * [`UnexpectedEof`](io::ErrorKind::UnexpectedEof): the stream has ended.
    /// * As for [`from_fd`](Sealed::from_fd); `ENOMEM` only if another thread took the address space meanwhile.
    ///
    /// # Examples
    ///
    /// ```
    /// # if cfg!(ropewalk_portable) { return Ok(()); }
    /// use ropewalk::Sealed;
    /// use std::io::ErrorKind;
    /// use std::os::unix::net::UnixStream;
    ///
    /// /// Returns the next payload; `None` if none has come.
    /// fn next(socket: &UnixStream) -> std::io::Result<Option<Sealed>> {
    ///     match Sealed::receive(socket) {
    ///         Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
    ///         received => received.map(Some),
    ///     }
    /// }
    ///
    /// let (one, other) = UnixStream::pair()?;
    /// other.set_nonblocking(true)?;
    /// assert!(next(&other)?.is_none());
    /// Sealed::copy_of(b"a payload")?.send(&one)?;
    /// assert_eq!(*next(&other)?.unwrap(), *b"a payload");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn receive(socket: impl AsFd) -> io::Result<Sealed> {
        let socket = socket.as_fd();
        let expected = peek(socket)?;
        let (memfd, addresses) = prepare(socket, expected)?;
        let mut message = [0; HEADER + COPY_MAX];
        let most = if sys::FdKind::of(socket) == sys::FdKind::Message {
            message.len()
        } else {
            expected.message_len()
        };
        let received = sys::recvmsg_into(socket, &mut message[..most])?;
        let bytes = received.bytes;
        drop(addresses); // for the payload's map
        match open(&message[..bytes], received)? {
            Some(sealed) => Ok(sealed),
            None => Sealed::copy_into(memfd.map_or_else(seal::memfd, Ok)?, &message[HEADER..bytes]),
        }
    }
}

fn send(socket: BorrowedFd<'_>, header: Header, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let header = header.encode();
    let (slices, len) = ([&header[..], bytes], HEADER + bytes.len());
    let mut iovecs = Iovecs::default();
    let some = slices.into_iter().filter(|slice| !slice.is_empty());
    iovecs.extend(some.map(io::IoSlice::new), len);
    match sys::sendmsg(socket, &iovecs, 0, fds)? {
        sent if sent == len => Ok(()),
        // No Linux does: a packet is queued whole.
        sent => {
            let message = format!("the socket took {sent} of a message's {len} bytes; close it");
            Err(io::Error::new(io::ErrorKind::WriteZero, message))
        }
    }
}

/// The header of the next message. Of one that has none, what a message without bytes would have.
fn peek(socket: BorrowedFd<'_>) -> io::Result<Header> {
    let mut header = [0; HEADER];
    let count = seal::peek_message(socket, &mut header)?;
    Ok(Header::decode(&header[..count]).unwrap_or(Header { copied: false, len: 0 }))
}

/// Makes sure of what the message will need, so that it is not lost for want of it: a memfd with memory for its bytes, or
/// a descriptor and addresses for a map.
fn prepare(socket: BorrowedFd<'_>, expected: Header) -> io::Result<(Option<File>, Option<Space>)> {
    if expected.copied {
        let memfd = seal::memfd()?;
        seal::allocate(&memfd, expected.len)?;
        return Ok((Some(memfd), None));
    }
    socket.try_clone_to_owned()?;
    let addresses = if expected.len > 0 { Some(Space::reserve(expected.len)?) } else { None };
    Ok((None, addresses))
}

/// Returns the payload that came with a message; `None` if it is in it.
fn open(message: &[u8], received: Received) -> io::Result<Option<Sealed>> {
    if received.end {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream has ended"));
    }
    let header = Header::decode(message)?;
    if received.truncated {
        let message = "the kernel has cut the message: it is longer than it says, or no descriptor was left \
                       (RLIMIT_NOFILE); its payload is lost";
        return Err(invalid(message));
    }
    if message.len() != header.message_len() {
        let (len, expected) = (message.len(), header.message_len());
        return Err(invalid(format!(
            "{len} bytes of a message of {expected}; it is to be sent in one piece"
        )));
    }
    let (count, expected) = (received.fds.len(), usize::from(!header.copied));
    if count != expected {
        return Err(invalid(format!("{count} descriptors came with a message that has {expected}")));
    }
    let Some(fd) = received.fds.into_iter().next() else { return Ok(None) };
    let sealed = Sealed::from_fd(fd)?;
    if sealed.len() != header.len {
        return Err(invalid(format!(
            "a memfd of {} bytes came with a message of {}",
            sealed.len(),
            header.len
        )));
    }
    Ok(Some(sealed))
}

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}
