//! `io::Error` as an exception with its numbers.

use std::io::{self, ErrorKind};

use pyo3::create_exception;
use pyo3::exceptions::{PyMemoryError, PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::pool::stats_of;

create_exception!(
    ropewalk,
    LimitExceeded,
    PyOSError,
    "More has arrived than the rope's limit; what is in the rope is kept.\n\nAttributes: limit (bytes), held (bytes)."
);
create_exception!(
    ropewalk,
    PoolFull,
    PyMemoryError,
    "The pool, or the system, has no memory for more; nothing is lost.\n\nAttributes: capacity (bytes), in_use (bytes)."
);

/// The pool, length and limit that an exception names.
#[derive(Default)]
pub(crate) struct Context {
    pub(crate) pool: Option<ropewalk::Pool>,
    pub(crate) held: usize,
    pub(crate) limit: usize,
}

impl Context {
    pub(crate) fn of(rope: &ropewalk::Rope) -> Context {
        Context { pool: rope.pool().cloned(), held: rope.len(), limit: rope.limit() }
    }

    /// Returns the exception for `error`.
    pub(crate) fn raise(self, py: Python<'_>, error: &io::Error) -> PyErr {
        match (error.kind(), self.pool) {
            (ErrorKind::QuotaExceeded, _) if error.raw_os_error().is_none() => {
                let raised = LimitExceeded::new_err((libc::EDQUOT, message(error)));
                with_numbers(py, raised, [("limit", self.limit as u64), ("held", self.held as u64)])
            }
            (ErrorKind::OutOfMemory, Some(pool)) => {
                let stats = stats_of(&pool);
                let raised = PoolFull::new_err(message(error));
                with_numbers(py, raised, [("capacity", stats.capacity), ("in_use", stats.in_use)])
            }
            _ => plain(error),
        }
    }
}

/// Returns the text of `error`, with Python's names for the settings that it advises to change.
fn message(error: &io::Error) -> String {
    error
        .to_string()
        .replace("PoolOptions::capacity", "Pool's capacity")
        .replace("Rope::set_limit", "Rope.limit")
}

fn with_numbers(py: Python<'_>, error: PyErr, numbers: [(&str, u64); 2]) -> PyErr {
    for (name, number) in numbers {
        if let Err(failed) = error.value(py).setattr(name, number) {
            return failed;
        }
    }
    error
}

/// Returns the exception for an error that concerns no rope and no pool: OSError with its errno, as the socket module's.
pub(crate) fn plain(error: &io::Error) -> PyErr {
    match (error.raw_os_error(), error.kind()) {
        (Some(code), _) => {
            let text = error.to_string();
            let suffix = format!(" (os error {code})");
            PyOSError::new_err((code, text.strip_suffix(&suffix).unwrap_or(&text).to_owned()))
        }
        (None, ErrorKind::WouldBlock) => PyOSError::new_err((libc::EAGAIN, error.to_string())),
        (None, ErrorKind::OutOfMemory) => PyMemoryError::new_err(error.to_string()),
        (None, ErrorKind::InvalidInput) => PyValueError::new_err(error.to_string()),
        (None, _) => PyOSError::new_err(error.to_string()),
    }
}
