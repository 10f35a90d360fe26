//! Loopback connections, and who sends into them.

use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::{libc, setsockopt_impl, sockopt_impl};

/// Bytes after which what is sent repeats itself.
const PERIOD: usize = 1 << 20;

/// Bytes that have to be there before a blocking read returns, unless it is the end: without it the
/// number of reads, and what they cost, would depend on which thread runs when.
const LEAST_READ: i32 = 256 << 10;

sockopt_impl!(
    /// `SO_RCVLOWAT`, socket(7).
    ReceiveAtLeast,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_RCVLOWAT,
    i32
);

/// Makes reads of this socket wait for `LEAST_READ` bytes or the end.
///
/// # Errors
///
/// What the kernel reports.
pub fn steady(socket: &TcpStream) -> io::Result<()> {
    setsockopt(socket, sockopt::RcvBuf, &(16 * LEAST_READ as usize))?;
    setsockopt(socket, ReceiveAtLeast, &LEAST_READ)?;
    Ok(())
}

/// A connected pair on loopback.
///
/// # Errors
///
/// What the kernel reports.
pub fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let here = TcpStream::connect(listener.local_addr()?)?;
    let there = listener.accept()?.0;
    here.set_nodelay(true)?;
    there.set_nodelay(true)?;
    Ok((here, there))
}

/// A pair, the second of which takes `bytes` at once though the first does not read: no other thread has
/// to take part.
///
/// # Errors
///
/// What the kernel reports.
pub fn roomy(bytes: usize) -> io::Result<(TcpStream, TcpStream)> {
    let (here, there) = pair()?;
    setsockopt(&here, sockopt::RcvBuf, &(4 * bytes))?;
    setsockopt(&there, sockopt::SndBuf, &(4 * bytes))?;
    Ok((here, there))
}

/// The same over a local stream, the second of which has all bytes before the first read.
///
/// Over TCP, where the receiver's window is smaller than what waits, the rest stays with the sender until a read opens
/// the window, and the kernel's work for it is done and counted within that read.
///
/// # Errors
///
/// What the kernel reports, or that `net.core.wmem_max` does not allow so much.
pub fn local(bytes: usize) -> io::Result<(TcpStream, TcpStream)> {
    let (here, there) = UnixStream::pair()?;
    setsockopt(&there, sockopt::SndBuf, &(4 * bytes))?;
    if getsockopt(&there, sockopt::SndBuf)? < 4 * bytes {
        return Err(io::Error::other(format!(
            "{bytes} bytes do not fit a socket: raise net.core.wmem_max to {}",
            4 * bytes
        )));
    }
    // Either type is no more than a descriptor, and the ways to receive are written for this one.
    Ok((TcpStream::from(OwnedFd::from(here)), TcpStream::from(OwnedFd::from(there))))
}

/// What is sent: the bytes of one page are alike, those of its neighbours differ.
#[must_use]
pub fn pattern() -> Vec<u8> {
    (0..PERIOD).map(expected).collect()
}

fn expected(at: usize) -> u8 {
    ((at % PERIOD) >> 12).wrapping_mul(37) as u8
}

/// Reads one byte of every page and compares it.
///
/// # Panics
///
/// If the payload is not what was sent.
pub fn check(payload: &[u8], size: usize) {
    assert_eq!(payload.len(), size, "bytes are missing");
    let ok = (0..size).step_by(4096).all(|at| payload[at] == expected(at));
    assert!(ok && payload.last().copied() == size.checked_sub(1).map(expected), "not what was sent");
}

/// Sends `size` bytes of `pattern`.
///
/// # Errors
///
/// What the kernel reports.
pub fn send(mut socket: &TcpStream, pattern: &[u8], size: usize) -> io::Result<()> {
    let mut left = size;
    while left > 0 {
        let count = left.min(pattern.len());
        socket.write_all(&pattern[..count])?;
        left -= count;
    }
    Ok(())
}

/// A thread at the other end that sends payloads on demand; it ends when this is dropped.
pub struct Peer(Sender<(TcpStream, usize)>);

impl Peer {
    /// Starts it.
    #[must_use]
    pub fn start() -> Peer {
        let (orders, taken) = channel::<(TcpStream, usize)>();
        thread::spawn(move || {
            let pattern = pattern();
            for (socket, size) in taken {
                // A receiver that has gone away says so itself.
                let _ = send(&socket, &pattern, size).and_then(|()| socket.shutdown(Shutdown::Write));
            }
        });
        Peer(orders)
    }

    /// A connection on which one payload of `size` bytes arrives, and then the end of the stream.
    ///
    /// # Errors
    ///
    /// What the kernel reports.
    ///
    /// # Panics
    ///
    /// If the thread has died.
    pub fn order(&self, size: usize) -> io::Result<TcpStream> {
        let (here, there) = pair()?;
        steady(&here)?;
        self.0.send((there, size)).expect("the thread lives as long as this");
        Ok(here)
    }
}
