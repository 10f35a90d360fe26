//! A non-blocking socket that waits with poll(2) and counts the calls made on it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub(crate) struct Socket {
    stream: TcpStream,
    /// System calls so far: reads or writes, and the polls between them.
    calls: u64,
    /// Longest wait for the peer.
    idle: PollTimeout,
}

impl Socket {
    /// A socket that waits for its peer without a limit.
    pub(crate) fn new(stream: TcpStream) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        Ok(Socket { stream, calls: 0, idle: PollTimeout::NONE })
    }

    /// Fails with `TimedOut` when the peer moves no byte for `idle`.
    pub(crate) fn with_idle(self, idle: Duration) -> Socket {
        Socket { idle: PollTimeout::try_from(idle).unwrap_or(PollTimeout::MAX), ..self }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls
    }

    /// Makes a `call` that reads, when it does not have to wait.
    pub(crate) fn read<T>(&mut self, call: impl FnMut(&TcpStream) -> io::Result<T>) -> io::Result<T> {
        self.when_ready(PollFlags::POLLIN, call)
    }

    /// Makes a `call` that writes, when it does not have to wait.
    pub(crate) fn write<T>(&mut self, call: impl FnMut(&TcpStream) -> io::Result<T>) -> io::Result<T> {
        self.when_ready(PollFlags::POLLOUT, call)
    }

    /// Reads `N` bytes, or fails with `UnexpectedEof`.
    pub(crate) fn read_array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (mut bytes, mut len) = ([0; N], 0);
        while len < N {
            match self.read(|mut stream| stream.read(&mut bytes[len..]))? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => len += count,
            }
        }
        Ok(bytes)
    }

    pub(crate) fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.write(|mut stream| stream.write(bytes))?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn when_ready<T>(
        &mut self,
        ready: PollFlags,
        mut call: impl FnMut(&TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            self.calls += 1;
            match call(&self.stream) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.calls += 1;
                    wait_up_to(self.idle, &mut [PollFd::new(self.stream.as_fd(), ready)])?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

/// poll(2), without a timeout.
pub(crate) fn wait(fds: &mut [PollFd<'_>]) -> io::Result<()> {
    wait_up_to(PollTimeout::NONE, fds)
}

fn wait_up_to(timeout: PollTimeout, fds: &mut [PollFd<'_>]) -> io::Result<()> {
    match poll(fds, timeout) {
        Ok(0) => Err(ErrorKind::TimedOut.into()),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
