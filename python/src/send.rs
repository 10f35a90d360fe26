//! Sending: what a rope and a cursor have in common.

use std::os::fd::BorrowedFd;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::attach;
use crate::fd::Fd;
use crate::pushed::Segment;
use crate::view::View;

/// What bytes are sent from.
pub(crate) trait Source {
    fn writev(&self, py: Python<'_>, fd: BorrowedFd<'_>) -> PyResult<usize>;

    fn sendmsg(
        &self,
        py: Python<'_>,
        fd: BorrowedFd<'_>,
        flags: i32,
        fds: &[BorrowedFd<'_>],
    ) -> PyResult<usize>;

    /// The next bytes, as many as are contiguous.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Segment>>;

    /// Moves on by `sent` bytes, at most to the end.
    fn sent(&self, py: Python<'_>, sent: usize) -> PyResult<()>;
}

pub(crate) fn send(source: &impl Source, sock: &Bound<'_, PyAny>) -> PyResult<usize> {
    let (py, fd) = (sock.py(), Fd::of(sock)?);
    if let Some(sock) = fd.encrypted()? {
        return send_encrypted(source, sock);
    }
    fd.wait(libc::POLLOUT)?;
    source.writev(py, fd.borrow())
}

pub(crate) fn sendmsg(
    source: &impl Source,
    sock: &Bound<'_, PyAny>,
    fds: &[Bound<'_, PyAny>],
    flags: i32,
) -> PyResult<usize> {
    let (py, fd) = (sock.py(), Fd::of(sock)?);
    fd.refuse_encrypted()?;
    let fds = fds.iter().map(Fd::of).collect::<PyResult<Vec<_>>>()?;
    let fds = fds.iter().map(Fd::borrow).collect::<Vec<_>>();
    fd.wait(libc::POLLOUT)?;
    source.sendmsg(py, fd.borrow(), flags, &fds)
}

/// By the socket's own `send`.
fn send_encrypted(source: &impl Source, sock: &Bound<'_, PyAny>) -> PyResult<usize> {
    let py = sock.py();
    let Some(next) = source.next(py)? else { return Ok(0) };
    let args = PyTuple::new(py, [Bound::new(py, View::part(next))?])?;
    let sent = attach::call(&sock.getattr(intern!(py, "send"))?, &args)?.extract::<usize>()?;
    source.sent(py, sent)?;
    Ok(sent)
}
