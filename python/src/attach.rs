//! Leaving the interpreter, and coming back to it at shutdown.
//!
//! Up to CPython 3.13, a daemon thread that attaches while the interpreter finalises ends by pthread_exit(3), which
//! unwinds the stack; the first Rust frame that catches panics aborts the process then. PyO3 parks such a thread where
//! it attaches by itself, as CPython 3.14 does everywhere; the calls here park one that calls Python code, which
//! attaches whenever it has waited. A parked thread keeps what it holds, so no lock is held while a thread attaches.

use std::mem;
use std::os::fd::RawFd;
use std::os::raw::c_int;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::thread;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// Locks `mutex`. Waits detached.
pub(crate) fn lock<'a, T: Send>(py: Python<'_>, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
    loop {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => py.detach(|| drop(lock_detached(mutex))),
        }
    }
}

/// Changes what `mutex` protects, detached. The lock is free when the thread attaches again.
pub(crate) fn detached<T: Send, R: Send>(
    py: Python<'_>,
    mutex: &Mutex<T>,
    change: impl FnOnce(&mut T) -> R + Send,
) -> R {
    py.detach(|| change(&mut lock_detached(mutex)))
}

fn lock_detached<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

// PyO3 declares these as functions that never unwind.
unsafe extern "C-unwind" {
    fn PyObject_AsFileDescriptor(object: *mut ffi::PyObject) -> c_int;
    fn PyObject_CallObject(callable: *mut ffi::PyObject, args: *mut ffi::PyObject) -> *mut ffi::PyObject;
    fn PyObject_GetBuffer(object: *mut ffi::PyObject, buffer: *mut ffi::Py_buffer, flags: c_int) -> c_int;
    fn PyBuffer_Release(buffer: *mut ffi::Py_buffer);
}

/// Parks the thread instead of being unwound.
struct Park;

impl Drop for Park {
    fn drop(&mut self) {
        loop {
            thread::park();
        }
    }
}

/// Makes one of the calls above.
fn parking<R>(call: impl FnOnce() -> R) -> R {
    let park = Park;
    let result = call();
    mem::forget(park);
    result
}

/// Calls `callable`.
pub(crate) fn call<'py>(
    callable: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: attached, and both live during the call.
    let result = parking(|| unsafe { PyObject_CallObject(callable.as_ptr(), args.as_ptr()) });
    // SAFETY: attached; a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(callable.py(), result) }
}

/// Returns the descriptor of an `int`, or of anything with `fileno()`.
pub(crate) fn descriptor(object: &Bound<'_, PyAny>) -> PyResult<RawFd> {
    // SAFETY: attached, and the object lives during the call.
    let fd = parking(|| unsafe { PyObject_AsFileDescriptor(object.as_ptr()) });
    if fd < 0 { Err(PyErr::fetch(object.py())) } else { Ok(fd) }
}

/// Exports the bytes of `object`, which have to be contiguous.
pub(crate) fn export(object: &Bound<'_, PyAny>) -> PyResult<Box<ffi::Py_buffer>> {
    let mut buffer = Box::new(ffi::Py_buffer::new());
    // SAFETY: attached, and both live during the call; `buffer` stays where it is until it is released.
    let refused = parking(|| unsafe { PyObject_GetBuffer(object.as_ptr(), &mut *buffer, ffi::PyBUF_SIMPLE) });
    if refused == 0 { Ok(buffer) } else { Err(PyErr::fetch(object.py())) }
}

/// Ends an export and empties `buffer`.
pub(crate) fn release(_py: Python<'_>, buffer: &mut ffi::Py_buffer) {
    // SAFETY: attached; `buffer` was filled by `export`, or is empty.
    parking(|| unsafe { PyBuffer_Release(buffer) });
}
