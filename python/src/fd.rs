//! Descriptors of Python objects, and what is to be done where one is blocking.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::raw::c_int;

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::attach;
use crate::error::plain;

/// A descriptor that its Python object keeps open.
pub(crate) struct Fd<'py> {
    object: Bound<'py, PyAny>,
    raw: RawFd,
}

impl<'py> Fd<'py> {
    /// Of an `int`, or of anything with `fileno()`.
    pub(crate) fn of(object: &Bound<'py, PyAny>) -> PyResult<Fd<'py>> {
        Ok(Fd { raw: attach::descriptor(object)?, object: object.clone() })
    }

    /// Borrows the descriptor for a detached call.
    pub(crate) fn borrow(&self) -> BorrowedFd<'static> {
        // SAFETY: as with every descriptor in Python, closing it during the call gives EBADF.
        unsafe { BorrowedFd::borrow_raw(self.raw) }
    }

    /// Returns the object if it is a TLS socket: its own methods have to be used then.
    pub(crate) fn encrypted(&self) -> PyResult<Option<&Bound<'py, PyAny>>> {
        static SOCKET: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        static SSL_SOCKET: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let py = self.object.py();
        let plain = SOCKET.import(py, "socket", "socket")?;
        if self.object.get_type().is(plain) || !self.object.hasattr(intern!(py, "_sslobj"))? {
            return Ok(None);
        }
        let encrypted = self.object.is_instance(SSL_SOCKET.import(py, "ssl", "SSLSocket")?)?;
        Ok(encrypted.then_some(&self.object))
    }

    /// Refuses a TLS socket.
    pub(crate) fn refuse_encrypted(&self) -> PyResult<()> {
        match self.encrypted()? {
            None => Ok(()),
            Some(_) => Err(PyValueError::new_err("descriptors do not go through a TLS socket")),
        }
    }

    /// Makes `call`, again after poll(2) whenever it returns `None`, which it does under its lock if the descriptor
    /// is blocking and not ready. A call that only polled first could find that another thread had taken the
    /// bytes, and block with the lock held.
    pub(crate) fn when_ready<R>(
        &self,
        events: i16,
        mut call: impl FnMut(Readiness) -> PyResult<Option<R>>,
    ) -> PyResult<R> {
        let readiness = self.readiness(events)?;
        loop {
            match call(readiness)? {
                Some(done) => return Ok(done),
                None => self.poll(events)?,
            }
            self.object.py().check_signals()?; // also where poll(2) says that it is ready, and it is not
        }
    }

    fn readiness(&self, events: i16) -> PyResult<Readiness> {
        let blocking = !nonblocking(self.raw).map_err(|error| plain(&error))?;
        Ok(Readiness { raw: self.raw, events, blocking })
    }

    fn poll(&self, events: i16) -> PyResult<()> {
        let (py, raw) = (self.object.py(), self.raw);
        while let Err(error) = py.detach(|| poll(raw, events, -1)) {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(plain(&error));
            }
            py.check_signals()?;
        }
        Ok(())
    }
}

/// Whether a call on a descriptor would block.
#[derive(Clone, Copy)]
pub(crate) struct Readiness {
    raw: RawFd,
    events: i16,
    blocking: bool,
}

impl Readiness {
    pub(crate) fn blocking(self) -> bool {
        self.blocking
    }

    /// Makes a socket's `call` with flags that forbid to wait. `None` if it would have waited, unless the caller's own
    /// `flags` forbid it.
    pub(crate) fn without_waiting<R>(
        self,
        flags: c_int,
        call: impl FnOnce(c_int) -> io::Result<R>,
    ) -> io::Result<Option<R>> {
        if !self.blocking || flags & libc::MSG_DONTWAIT != 0 {
            return call(flags).map(Some);
        }
        match call(flags | libc::MSG_DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            done => done.map(Some),
        }
    }

    /// Makes `call` unless it would block: then `None`. Does not wait.
    pub(crate) fn attempt<R>(self, call: impl FnOnce() -> io::Result<R>) -> io::Result<Option<R>> {
        if self.blocking && !poll(self.raw, self.events, 0)? { Ok(None) } else { call().map(Some) }
    }
}

fn nonblocking(fd: RawFd) -> io::Result<bool> {
    // SAFETY: no memory is passed.
    match unsafe { libc::fcntl(fd, libc::F_GETFL) } {
        -1 => Err(io::Error::last_os_error()),
        flags => Ok(flags & libc::O_NONBLOCK != 0),
    }
}

/// Returns `true` if the descriptor is ready within `timeout` milliseconds; -1 is without end.
fn poll(fd: RawFd, events: i16, timeout: c_int) -> io::Result<bool> {
    let mut polled = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one `pollfd`, which lives during the call.
    match unsafe { libc::poll(&mut polled, 1, timeout) } {
        -1 => Err(io::Error::last_os_error()),
        ready => Ok(ready > 0),
    }
}
