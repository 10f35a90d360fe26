//! A position in a rope, outside of it.

use std::io;
use std::sync::{Arc, Mutex};

use pyo3::PyTraverseError;
use pyo3::exceptions::PyIndexError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use crate::attach;
use crate::count::Count;
use crate::error::plain;
use crate::exports::Exports;
use crate::fork::Born;
use crate::pushed::{Segment, Sweep};
use crate::send::{self, Source};

type Inner = ropewalk::Cursor<Arc<ropewalk::Rope>>;

/// A position in a rope as it was when the cursor was made: sends from there on and leaves the rope as it is.
///
/// Made by :meth:`Rope.cursor`. It shares the rope's memory. Moving on is O(1), going elsewhere O(log n) in the number
/// of segments.
#[pyclass(frozen, weakref, module = "ropewalk")]
pub(crate) struct Cursor {
    inner: Mutex<Inner>,
    exports: Exports,
    len: usize,
    born: Born,
    _sweep: Sweep,
}

impl Cursor {
    pub(crate) fn new(rope: Arc<ropewalk::Rope>, exports: Exports, position: usize) -> PyResult<Cursor> {
        let len = rope.len();
        check(position, len)?;
        let mut inner = Inner::new(rope);
        inner.set_position(position);
        Ok(Cursor { inner: Mutex::new(inner), exports, len, born: Born::now(), _sweep: Sweep })
    }

    /// Does something with the cursor, detached.
    fn with<R: Send>(&self, py: Python<'_>, act: impl FnOnce(&mut Inner) -> R + Send) -> PyResult<R> {
        self.born.check("cursor")?;
        Ok(attach::detached(py, &self.inner, act))
    }

    fn at(&self, py: Python<'_>) -> PyResult<usize> {
        self.born.check("cursor")?;
        Ok(attach::lock(py, &self.inner).position())
    }
}

impl Source for Cursor {
    type Outgoing = Inner;

    fn attempt<R: Send>(
        &self,
        py: Python<'_>,
        send: impl FnOnce(&mut Inner) -> io::Result<R> + Send,
    ) -> PyResult<R> {
        self.with(py, send)?.map_err(|error| plain(&error))
    }

    fn next(&self, py: Python<'_>) -> PyResult<Option<Segment>> {
        let next = self.with(py, |cursor| {
            let at = cursor.position();
            let len = cursor.chunk().len();
            cursor.get_ref().slice(at..at + len).into_iter().next()
        })?;
        Ok(next.map(|bytes| Segment { exports: self.exports.of(py, [&bytes[..]]), bytes }))
    }

    fn sent(&self, py: Python<'_>, sent: usize) -> PyResult<()> {
        self.with(py, |cursor| cursor.advance(sent.min(cursor.remaining())))
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
    /// how many bytes that were; 0 only at the end. One call of at most 1024 segments (IOV_MAX), behind an fcntl(2);
    /// nothing is copied.
    ///
    /// A blocking descriptor is waited for, by poll(2), if it takes nothing now; it is sent what it takes at once, which may
    /// be less than all: call again, or use :func:`send_all`. A pipe gets 4 KiB a call, behind a poll(2) each. While it waits
    /// signals' handlers run, and other threads may use the rope and the cursor.
    ///
    /// Raises BlockingIOError when a non-blocking ``sock``, such as one with a timeout, takes nothing now, and what else the
    /// kernel reports: the position is at the first byte not sent. ``sock`` is a descriptor or has ``fileno()``; a TLS
    /// socket sends by its own ``send``.
    fn send(&self, sock: &Bound<'_, PyAny>) -> PyResult<usize> {
        send::send(self, sock)
    }

    /// As :meth:`send`, by the name of the rope's method.
    fn send_to(&self, sock: &Bound<'_, PyAny>) -> PyResult<usize> {
        self.send(sock)
    }

    /// sendmsg(2) with descriptors beside the bytes; they go with the first byte. As :meth:`send`; with ``MSG_DONTWAIT``
    /// among ``flags`` a blocking socket is not waited for.
    #[pyo3(signature = (sock, fds=Vec::new(), flags=0))]
    fn sendmsg(&self, sock: &Bound<'_, PyAny>, fds: Vec<Bound<'_, PyAny>>, flags: i32) -> PyResult<usize> {
        send::sendmsg(self, sock, &fds, flags)
    }

    /// Bytes before the cursor. Set it to go elsewhere; IndexError beyond the end, ValueError before the start.
    #[getter]
    fn position(&self, py: Python<'_>) -> PyResult<usize> {
        self.at(py)
    }

    #[setter]
    fn set_position(&self, py: Python<'_>, position: Count) -> PyResult<()> {
        check(position.0, self.len)?;
        self.with(py, |cursor| cursor.set_position(position.0))
    }

    /// Bytes from the cursor on.
    #[getter]
    fn remaining(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.len - self.at(py)?)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.exports.traverse(&visit)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("<ropewalk.Cursor at {} of {} bytes>", self.at(py)?, self.len))
    }
}
