//! A pipe or a pair of sockets with a tiny buffer, and the bytes and descriptors that are in it.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Every third channel is a pipe.
const KINDS: usize = 3;

pub struct Channel {
    pub writer: Option<OwnedFd>,
    pub reader: Option<OwnedFd>,
    pub is_socket: bool,
    bytes: VecDeque<u8>,
    /// Bytes that were ever sent and received.
    sent: u64,
    received: u64,
    /// How many descriptors went with which byte.
    fds: VecDeque<(u64, usize)>,
}

impl Channel {
    pub fn new(kind: usize) -> Channel {
        let is_socket = kind % KINDS != 0;
        let (writer, reader) = if is_socket { sockets() } else { pipe() };
        Channel {
            writer: Some(writer),
            reader: Some(reader),
            is_socket,
            bytes: VecDeque::new(),
            sent: 0,
            received: 0,
            fds: VecDeque::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many of `count` descriptors to send, if this channel takes any.
    pub fn descriptors(&self, count: u8) -> usize {
        if self.is_socket && self.fds.len() < 4 { usize::from(count % 4) } else { 0 }
    }

    pub fn note_sent(&mut self, bytes: impl Iterator<Item = u8>, fds: usize) {
        if fds > 0 {
            self.fds.push_back((self.sent, fds));
        }
        let before = self.bytes.len();
        self.bytes.extend(bytes);
        self.sent += (self.bytes.len() - before) as u64;
    }

    /// The next `count` bytes, and how many descriptors go with them.
    pub fn note_received(&mut self, count: usize) -> (Vec<u8>, usize) {
        let bytes = self.bytes.drain(..count).collect();
        self.received += count as u64;
        let mut fds = 0;
        while let Some((_, count)) = self.fds.pop_front_if(|(at, _)| *at < self.received) {
            fds += count;
        }
        (bytes, fds)
    }
}

fn sockets() -> (OwnedFd, OwnedFd) {
    let (writer, reader) = UnixStream::pair().unwrap();
    for socket in [&writer, &reader] {
        socket.set_nonblocking(true).unwrap();
    }
    // The kernel makes the least it admits of it.
    let least: libc::c_int = 1;
    let len = size_of_val(&least) as libc::socklen_t;
    let result = unsafe {
        libc::setsockopt(
            writer.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUF,
            (&raw const least).cast(),
            len,
        )
    };
    assert_eq!(result, 0);
    (writer.into(), reader.into())
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) }, 0);
    assert!(unsafe { libc::fcntl(ends[1], libc::F_SETPIPE_SZ, 4096) } >= 4096);
    let [reader, writer] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    (writer, reader)
}
