//! Other objects' buffers as segments, without a copy.
//!
//! A segment owns an export, and by that a reference to the exporter. Segments die inside of calls that hold a
//! rope's lock and are detached; what a release runs is anybody's code, so exports wait in `DROPPED` until
//! [`release`].

use std::mem::{self, ManuallyDrop};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

use crate::attach;
use crate::exports::{Exported, Exports};

/// An export of an object's buffer, which the object may not move or free meanwhile; and which of its bytes are meant.
struct Buffer {
    export: Box<ffi::Py_buffer>,
    start: *const u8,
    len: usize,
    /// `true` if the garbage collector has to be shown the exporter, and may be.
    tracked: bool,
    /// The buffer dropped before this one: an intrusive list, which takes no memory.
    before: Option<Box<Buffer>>,
}

// SAFETY: the memory is the exporter's until the export is released, which is done attached.
unsafe impl Send for Buffer {}
// SAFETY: as above; through `&Buffer` the bytes are only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn of(object: &Bound<'_, PyAny>) -> PyResult<Buffer> {
        let export = attach::export(object)?;
        let (start, len) = (export.buf.cast_const().cast(), export.len.max(0).cast_unsigned());
        let tracked = is_tracked(object, export.obj);
        Ok(Buffer { export, start, len, tracked, before: None })
    }

    fn bytes(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: they are within what PyBUF_SIMPLE exports until the export is released.
        unsafe { slice::from_raw_parts(self.start, self.len) }
    }

    /// Exports the same bytes from `object`, if it has them.
    fn exported_by(&self, object: &Bound<'_, PyAny>) -> Option<Buffer> {
        let all = Buffer::of(object).ok()?;
        let (outer, inner) = (all.bytes().as_ptr_range(), self.bytes().as_ptr_range());
        if outer.start <= inner.start && inner.end <= outer.end {
            return Some(Buffer { start: self.start, len: self.len, ..all });
        }
        all.release(object.py());
        None
    }

    fn release(mut self, py: Python<'_>) {
        attach::release(py, &mut self.export);
    }
}

/// A memoryview must not be taken for garbage while it has exports: CPython up to 3.12 clears it, and faults when they are
/// released. So only an object that exports its own bytes is shown: behind another, such as the buffer of a class
/// written in Python, there may be a memoryview.
fn is_tracked(object: &Bound<'_, PyAny>, exporter: *mut ffi::PyObject) -> bool {
    // SAFETY: attached, and the object lives.
    let tracked = || unsafe { ffi::PyObject_GC_IsTracked(exporter) } != 0;
    exporter == object.as_ptr() && !object.is_instance_of::<PyMemoryView>() && tracked()
}

/// What keeps a segment's bytes.
pub(crate) struct Export(Option<Box<Buffer>>);

impl Export {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |buffer| buffer.bytes())
    }

    /// The export's own reference, to be looked at only.
    pub(crate) fn exporter(&self, py: Python<'_>) -> ManuallyDrop<Py<PyAny>> {
        let exporter = self.0.as_ref().map_or_else(|| py.None().into_ptr(), |buffer| buffer.export.obj);
        // SAFETY: attached; the reference is the export's, and is never given up through this.
        ManuallyDrop::new(unsafe { Bound::from_owned_ptr(py, exporter) }.unbind())
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Some(mut buffer) = self.0.take() {
            let mut dropped = dropped();
            buffer.before = dropped.take();
            *dropped = Some(buffer);
            WAITING.store(true, Ordering::Release);
        }
    }
}

/// The owner of a segment.
struct Owner(Arc<Export>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// Exports that no segment needs any more.
static DROPPED: Mutex<Option<Box<Buffer>>> = Mutex::new(None);
static WAITING: AtomicBool = AtomicBool::new(false);

fn dropped() -> MutexGuard<'static, Option<Box<Buffer>>> {
    DROPPED.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The lock of `DROPPED`, which a fork holds: another thread's would stay locked in the child.
pub(crate) struct Lock(#[expect(dead_code, reason = "held")] MutexGuard<'static, Option<Box<Buffer>>>);

/// Holds the lock.
pub(crate) fn lock() -> Lock {
    Lock(dropped())
}

/// Bytes, and what they refer to.
#[derive(Default)]
pub(crate) struct Segment {
    pub(crate) bytes: Bytes,
    pub(crate) exports: Exports,
}

/// Exports the bytes of any object with a contiguous buffer. No copy: the object lives, and stays exported, as long
/// as the segment.
pub(crate) fn segment(object: &Bound<'_, PyAny>) -> PyResult<Segment> {
    let py = object.py();
    let buffer = buffer_of(object)?;
    if buffer.len == 0 {
        buffer.release(py);
        return Ok(Segment::default());
    }
    let tracked = buffer.tracked;
    let (export, exports) = (Arc::new(Export(Some(Box::new(buffer)))), Exports::default());
    if tracked {
        exports.add(Py::new(py, Exported::of(py, &export))?);
    }
    Ok(Segment { bytes: Bytes::from_owner(Owner(export)), exports })
}

/// Exports `object`, or the object behind a memoryview if that exports the same bytes.
fn buffer_of(object: &Bound<'_, PyAny>) -> PyResult<Buffer> {
    let buffer = Buffer::of(object)?;
    if !object.is_instance_of::<PyMemoryView>() {
        return Ok(buffer);
    }
    match buffer.exported_by(&object.getattr(intern!(object.py(), "obj"))?) {
        Some(behind) => {
            buffer.release(object.py());
            Ok(behind)
        }
        None => Ok(buffer),
    }
}

/// Calls `look` with the bytes of any object with a contiguous buffer.
pub(crate) fn with_bytes<R>(object: &Bound<'_, PyAny>, look: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
    let buffer = Buffer::of(object)?;
    let result = look(buffer.bytes());
    buffer.release(object.py());
    Ok(result)
}

/// Releases the dropped exports. Called attached, and without a lock.
#[inline]
pub(crate) fn release(py: Python<'_>) {
    while WAITING.load(Ordering::Acquire) {
        let last = {
            let mut dropped = dropped();
            WAITING.store(false, Ordering::Release);
            dropped.take()
        };
        let mut next = first_to_last(last);
        while let Some(mut buffer) = next {
            next = buffer.before.take();
            buffer.release(py);
        }
    }
}

/// Reverses the list: exports are released in the order in which they were dropped.
fn first_to_last(mut last: Option<Box<Buffer>>) -> Option<Box<Buffer>> {
    let mut turned = None;
    while let Some(mut buffer) = last {
        last = mem::replace(&mut buffer.before, turned);
        turned = Some(buffer);
    }
    turned
}

/// Releases dropped exports when it is dropped: the last field of each type that holds segments.
pub(crate) struct Sweep;

impl Drop for Sweep {
    fn drop(&mut self) {
        if WAITING.load(Ordering::Acquire) {
            let _stays_at_shutdown = Python::try_attach(release);
        }
    }
}
