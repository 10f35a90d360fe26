//! A non-blocking socket that waits with poll(2) and counts the calls made on it.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub(crate) struct Socket {
    stream: TcpStream,
    /// System calls so far: reads or writes, and the polls between them.
    calls: u64,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        Ok(Socket { stream, calls: 0 })
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

    fn when_ready<T>(
        &mut self,
        ready: PollFlags,
        mut call: impl FnMut(&TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            self.calls += 1;
            match call(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.calls += 1;
                    wait(&mut [PollFd::new(self.stream.as_fd(), ready)])?;
                }
                done => return done,
            }
        }
    }
}

/// poll(2), without a timeout.
pub(crate) fn wait(fds: &mut [PollFd<'_>]) -> io::Result<()> {
    match poll(fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
