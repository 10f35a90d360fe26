//! Sending: what a rope and a cursor have in common.

use std::borrow::Borrow;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::raw::c_int;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::attach;
use crate::fd::{Fd, Readiness};
use crate::pushed::Segment;
use crate::view::View;

/// A rope of the crate, or a cursor.
pub(crate) trait Outgoing {
    fn writev(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize>;

    fn sendmsg(&mut self, fd: BorrowedFd<'_>, flags: c_int, fds: &[BorrowedFd<'_>]) -> io::Result<usize>;

    /// Returns the next bytes, at most `max`, sharing their memory.
    fn next(&self, max: usize) -> ropewalk::Rope;

    /// Moves on by `sent` bytes, at most to the end.
    fn sent(&mut self, sent: usize);
}

impl Outgoing for ropewalk::Rope {
    fn writev(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.writev_to(fd)
    }

    fn sendmsg(&mut self, fd: BorrowedFd<'_>, flags: c_int, fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.sendmsg_to(fd, flags, fds)
    }

    fn next(&self, max: usize) -> ropewalk::Rope {
        self.slice(..self.len().min(max))
    }

    fn sent(&mut self, sent: usize) {
        self.advance(sent.min(self.len()));
    }
}

impl<R: Borrow<ropewalk::Rope>> Outgoing for ropewalk::Cursor<R> {
    fn writev(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.writev_to(fd)
    }

    fn sendmsg(&mut self, fd: BorrowedFd<'_>, flags: c_int, fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.sendmsg_to(fd, flags, fds)
    }

    fn next(&self, max: usize) -> ropewalk::Rope {
        let at = self.position();
        self.get_ref().borrow().slice(at..at + self.remaining().min(max))
    }

    fn sent(&mut self, sent: usize) {
        self.advance(sent.min(self.remaining()));
    }
}

/// A rope or a cursor behind a lock.
pub(crate) trait Source {
    type Outgoing: Outgoing;

    /// Sends, detached and with the lock. Must not wait: all other calls would.
    fn attempt<R: Send>(
        &self,
        py: Python<'_>,
        send: impl FnOnce(&mut Self::Outgoing) -> io::Result<R> + Send,
    ) -> PyResult<R>;

    /// Returns the next contiguous bytes.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Segment>>;

    /// Moves on by `sent` bytes, at most to the end.
    fn sent(&self, py: Python<'_>, sent: usize) -> PyResult<()>;
}

pub(crate) fn send(source: &impl Source, sock: &Bound<'_, PyAny>) -> PyResult<usize> {
    let (py, fd) = (sock.py(), Fd::of(sock)?);
    if let Some(sock) = fd.encrypted()? {
        return send_encrypted(source, sock);
    }
    let to = fd.borrow();
    fd.when_ready(libc::POLLOUT, |ready| source.attempt(py, |from| write(from, to, ready)))
}

pub(crate) fn sendmsg(
    source: &impl Source,
    sock: &Bound<'_, PyAny>,
    fds: &[Bound<'_, PyAny>],
    flags: c_int,
) -> PyResult<usize> {
    let (py, fd) = (sock.py(), Fd::of(sock)?);
    fd.refuse_encrypted()?;
    let fds = fds.iter().map(Fd::of).collect::<PyResult<Vec<_>>>()?;
    let fds = fds.iter().map(Fd::borrow).collect::<Vec<_>>();
    let to = fd.borrow();
    fd.when_ready(libc::POLLOUT, |ready| {
        source.attempt(py, |from| ready.without_waiting(flags, |flags| from.sendmsg(to, flags, &fds)))
    })
}

/// writev(2), or sendmsg(2), of what is taken at once; `None` if that is nothing and the descriptor is a blocking one.
fn write(from: &mut impl Outgoing, to: BorrowedFd<'_>, ready: Readiness) -> io::Result<Option<usize>> {
    if !ready.blocking() {
        return from.writev(to).map(Some);
    }
    match ready.without_waiting(0, |flags| from.sendmsg(to, flags, &[])) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => write_file(from, to, ready),
        sent => sent,
    }
}

/// As [`write`] to what is no socket, for which there is no flag that forbids to wait.
fn write_file(from: &mut impl Outgoing, to: BorrowedFd<'_>, ready: Readiness) -> io::Result<Option<usize>> {
    if !waits(to)? {
        return from.writev(to).map(Some);
    }
    let mut sent = 0;
    while let Some(count) =
        ready.attempt(|| from.next(PIPE_MAX).writev_to(to)).or_else(|error| match sent {
            0 => Err(error),
            _ => Ok(None), // it comes again with the next call
        })?
    {
        from.sent(count);
        sent += count;
        if count == 0 || sent >= MAX_IN_PIECES {
            return Ok(Some(sent));
        }
    }
    Ok(Some(sent).filter(|&sent| sent > 0))
}

/// Most bytes that a pipe takes without waiting if poll(2) has said that it is writable: PIPE_BUF.
const PIPE_MAX: usize = 4096;

/// Bytes after which pieces of that size are enough for one call.
const MAX_IN_PIECES: usize = 1 << 20;

/// Returns `true` if a write may wait for a reader: of a pipe or a terminal.
fn waits(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: zeros are a `stat`.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: one `stat`, which lives during the call.
    if unsafe { libc::fstat(fd.as_raw_fd(), &mut stat) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(!matches!(stat.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFBLK))
}

/// Sends by a TLS socket's own `send`.
fn send_encrypted(source: &impl Source, sock: &Bound<'_, PyAny>) -> PyResult<usize> {
    let py = sock.py();
    let Some(next) = source.next(py)? else { return Ok(0) };
    let args = PyTuple::new(py, [Bound::new(py, View::part(next))?])?;
    let sent = attach::call(&sock.getattr(intern!(py, "send"))?, &args)?.extract::<usize>()?;
    source.sent(py, sent)?;
    Ok(sent)
}
