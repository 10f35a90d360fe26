//! Other objects' buffers as segments, without a copy.

use std::mem;
use std::os::raw::c_int;
use std::slice;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use pyo3::ffi;
use pyo3::prelude::*;

/// An export of an object's buffer, which the object may not move or free meanwhile.
struct Pushed(Box<ffi::Py_buffer>);

// SAFETY: the memory is the exporter's until the export is released, which only `release` does, attached.
unsafe impl Send for Pushed {}
// SAFETY: as above; through `&Pushed` the bytes are only read.
unsafe impl Sync for Pushed {}

impl AsRef<[u8]> for Pushed {
    fn as_ref(&self) -> &[u8] {
        if self.0.len <= 0 {
            return &[];
        }
        // SAFETY: PyBUF_SIMPLE exports `len` bytes from `buf` on until the export is released.
        unsafe { slice::from_raw_parts(self.0.buf.cast(), self.0.len as usize) }
    }
}

/// Exports that no segment needs any more. Segments die inside of calls that hold a rope's lock and are
/// detached; what a release runs is anybody's code, so it waits until [`release`].
static DROPPED: Mutex<Vec<Pushed>> = Mutex::new(Vec::new());
static COUNT: AtomicUsize = AtomicUsize::new(0);

struct Owner(Option<Pushed>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], Pushed::as_ref)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let mut dropped = DROPPED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        dropped.extend(self.0.take());
        COUNT.store(dropped.len(), Ordering::Release);
    }
}

/// The bytes of any object with a contiguous buffer. No copy: the object lives, and stays exported, as long
/// as the segment.
pub(crate) fn segment(object: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    Ok(Bytes::from_owner(Owner(Some(export(object, ffi::PyBUF_SIMPLE)?))))
}

fn export(object: &Bound<'_, PyAny>, flags: c_int) -> PyResult<Pushed> {
    let mut buffer = Box::new(ffi::Py_buffer::new());
    // SAFETY: attached; `buffer` lies where it stays until it is released.
    if unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &mut *buffer, flags) } != 0 {
        return Err(PyErr::fetch(object.py()));
    }
    Ok(Pushed(buffer))
}

/// Releases what was dropped since. To be called attached, and without a lock.
#[inline]
pub(crate) fn release(_py: Python<'_>) {
    while COUNT.load(Ordering::Acquire) > 0 {
        let dropped = {
            let mut dropped = DROPPED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            COUNT.store(0, Ordering::Release);
            mem::take(&mut *dropped)
        };
        for mut pushed in dropped {
            // SAFETY: attached, and each export is released once: it is dropped with its owner taken out.
            unsafe { ffi::PyBuffer_Release(&mut *pushed.0) };
        }
    }
}

/// Looks at the bytes of any object with a contiguous buffer.
pub(crate) fn with_bytes<R>(object: &Bound<'_, PyAny>, look: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
    let mut export = export(object, ffi::PyBUF_SIMPLE)?;
    let result = look(export.as_ref());
    // SAFETY: attached, and released once.
    unsafe { ffi::PyBuffer_Release(&mut *export.0) };
    Ok(result)
}

/// Releases when it is dropped: the last field of whatever holds segments.
#[derive(Default)]
pub(crate) struct Sweep;

impl Drop for Sweep {
    fn drop(&mut self) {
        if COUNT.load(Ordering::Acquire) > 0 {
            let _at_shutdown_it_stays = Python::try_attach(release);
        }
    }
}
