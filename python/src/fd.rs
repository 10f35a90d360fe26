//! Descriptors of Python objects, and what is to be done where one is blocking.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

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

    /// What a call may use while it is detached.
    pub(crate) fn borrow(&self) -> BorrowedFd<'static> {
        // SAFETY: as with every descriptor in Python, closing it during the call gives EBADF.
        unsafe { BorrowedFd::borrow_raw(self.raw) }
    }

    /// The object, if what goes through its descriptor is encrypted: then its own methods have to be used.
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

    /// Refuses what cannot be done through encryption.
    pub(crate) fn refuse_encrypted(&self) -> PyResult<()> {
        match self.encrypted()? {
            None => Ok(()),
            Some(_) => Err(PyValueError::new_err("descriptors do not go through a TLS socket")),
        }
    }

    /// poll(2), if the descriptor is blocking: so that signals have their handlers run while it waits.
    pub(crate) fn wait(&self, events: i16) -> PyResult<()> {
        let (py, raw) = (self.object.py(), self.raw);
        if nonblocking(raw).map_err(|error| plain(&error))? {
            return Ok(());
        }
        while let Err(error) = py.detach(|| poll(raw, events)) {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(plain(&error));
            }
            py.check_signals()?;
        }
        Ok(())
    }
}

fn nonblocking(fd: RawFd) -> io::Result<bool> {
    // SAFETY: no memory is passed.
    match unsafe { libc::fcntl(fd, libc::F_GETFL) } {
        -1 => Err(io::Error::last_os_error()),
        flags => Ok(flags & libc::O_NONBLOCK != 0),
    }
}

fn poll(fd: RawFd, events: i16) -> io::Result<()> {
    let mut polled = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one `pollfd`, which lives during the call.
    match unsafe { libc::poll(&mut polled, 1, -1) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
