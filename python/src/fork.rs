//! A forked child has not the pool's memory: to touch it there would be a fault. So whatever was made before
//! a fork refuses every call behind it, in one place, [`Born::check`].

use std::sync::atomic::{AtomicU32, Ordering};

use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;

/// How often this process, its parent, and so on, were forked.
static FORKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// pthread_atfork(3): counts the forks from here on, whoever makes them.
pub(crate) fn watch() -> PyResult<()> {
    static WATCHED: std::sync::Once = std::sync::Once::new();
    let mut refused = 0;
    WATCHED.call_once(|| {
        // SAFETY: the handler does nothing but count, and this library is never unloaded.
        refused = unsafe { libc::pthread_atfork(None, None, Some(forked)) };
    });
    if refused == 0 { Ok(()) } else { Err(PyRuntimeError::new_err("no memory to watch forks with")) }
}

/// The process in which something was made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Born(u32);

impl Born {
    pub(crate) fn now() -> Born {
        Born(FORKS.load(Ordering::Relaxed))
    }

    pub(crate) fn here(self) -> bool {
        self == Born::now()
    }

    /// Refuses what was inherited.
    pub(crate) fn check(self, what: &str) -> PyResult<()> {
        if self.here() { Ok(()) } else { Err(inherited(what)) }
    }
}

#[cold]
fn inherited(what: &str) -> PyErr {
    let message = format!(
        "this {what} was made before the process was forked, and its memory is the parent's alone; \
         make it in the child, or send its bytes there"
    );
    PyOSError::new_err((libc::EPERM, message))
}
