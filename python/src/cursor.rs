//! A position in a rope, outside of it.

use std::sync::{Arc, Mutex};

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;

use crate::error::plain;
use crate::fd::Fd;
use crate::fork::Born;
use crate::pushed::{self, Sweep};
use crate::view::View;

type Inner = ropewalk::Cursor<Arc<ropewalk::Rope>>;

/// A position in a rope as it was when the cursor was made: sends from there on and leaves the rope as it is.
///
/// Made by :meth:`Rope.cursor`. It shares the rope's memory. Moving on is O(1), going elsewhere O(log n) in the number
/// of segments.
#[pyclass(frozen, weakref, module = "ropewalk")]
pub(crate) struct Cursor {
    inner: Mutex<Inner>,
    len: usize,
    born: Born,
    _sweep: Sweep,
}

impl Cursor {
    pub(crate) fn new(rope: Arc<ropewalk::Rope>, position: usize) -> PyResult<Cursor> {
        let len = rope.len();
        check(position, len)?;
        let mut inner = Inner::new(rope);
        inner.set_position(position);
        Ok(Cursor { inner: Mutex::new(inner), len, born: Born::now(), _sweep: Sweep })
    }

    /// Does something with the cursor, detached.
    fn with<R: Send>(&self, py: Python<'_>, act: impl FnOnce(&mut Inner) -> R + Send) -> PyResult<R> {
        self.born.check("cursor")?;
        let mut inner = self.inner.lock_py_attached(py).unwrap_or_else(|poisoned| poisoned.into_inner());
        let inner = &mut *inner;
        Ok(py.detach(|| act(inner)))
    }

    fn at(&self, py: Python<'_>) -> PyResult<usize> {
        self.born.check("cursor")?;
        Ok(self.inner.lock_py_attached(py).unwrap_or_else(|poisoned| poisoned.into_inner()).position())
    }
}

fn check(position: usize, len: usize) -> PyResult<()> {
    if position > len {
        return Err(PyIndexError::new_err(format!("position {position} is beyond the rope's {len} bytes")));
    }
    Ok(())
}

#[pymethods]
impl Cursor {
    /// sendmsg(2), or writev(2) for what is no socket: sends from the position on, and moves it by as much. Returns
    /// how many bytes that were; 0 only at the end. One call, at most 1024 segments (IOV_MAX); nothing is copied.
    ///
    /// Raises BlockingIOError when ``sock`` takes nothing now, and what else the kernel reports: the position is at the first
    /// byte not sent. ``sock`` is a descriptor or has ``fileno()``; a TLS socket sends by its own ``send``.
    fn send(&self, py: Python<'_>, sock: &Bound<'_, PyAny>) -> PyResult<usize> {
        let fd = Fd::of(sock)?;
        if let Some(sock) = fd.encrypted()? {
            return self.send_encrypted(py, sock);
        }
        fd.wait(libc::POLLOUT)?;
        let fd = fd.borrow();
        self.with(py, |cursor| cursor.writev_to(fd))?.map_err(|error| plain(&error))
    }

    /// The same, by the name that ropes have for it.
    fn send_to(&self, py: Python<'_>, sock: &Bound<'_, PyAny>) -> PyResult<usize> {
        self.send(py, sock)
    }

    /// sendmsg(2) with descriptors beside the bytes; they go with the first byte. As :meth:`send`.
    #[pyo3(signature = (sock, fds=Vec::new(), flags=0))]
    fn sendmsg(
        &self,
        py: Python<'_>,
        sock: &Bound<'_, PyAny>,
        fds: Vec<Bound<'_, PyAny>>,
        flags: i32,
    ) -> PyResult<usize> {
        let fd = Fd::of(sock)?;
        fd.refuse_encrypted()?;
        let fds = fds.iter().map(|fd| Ok(Fd::of(fd)?.borrow())).collect::<PyResult<Vec<_>>>()?;
        fd.wait(libc::POLLOUT)?;
        let fd = fd.borrow();
        self.with(py, |cursor| cursor.sendmsg_to(fd, flags, &fds))?.map_err(|error| plain(&error))
    }

    /// Bytes before the cursor. Set it to go elsewhere; IndexError beyond the end.
    #[getter]
    fn position(&self, py: Python<'_>) -> PyResult<usize> {
        self.at(py)
    }

    #[setter]
    fn set_position(&self, py: Python<'_>, position: usize) -> PyResult<()> {
        check(position, self.len)?;
        self.with(py, |cursor| cursor.set_position(position))
    }

    /// Bytes from the cursor on.
    #[getter]
    fn remaining(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.len - self.at(py)?)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("<ropewalk.Cursor at {} of {} bytes>", self.at(py)?, self.len))
    }
}

impl Cursor {
    /// By the socket's own `send`, of the bytes that lie side by side.
    fn send_encrypted(&self, py: Python<'_>, sock: &Bound<'_, PyAny>) -> PyResult<usize> {
        let first = self.with(py, |cursor| {
            let at = cursor.position();
            let len = cursor.chunk().len();
            cursor.get_ref().slice(at..at + len).into_iter().next()
        })?;
        let Some(first) = first else { return Ok(0) };
        let sent = sock.call_method1(pyo3::intern!(py, "send"), (View::part(first),))?.extract::<usize>()?;
        self.with(py, |cursor| cursor.advance(sent.min(cursor.remaining())))?;
        pushed::release(py);
        Ok(sent)
    }
}
