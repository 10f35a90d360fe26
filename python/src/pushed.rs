//! Other objects' buffers as segments, without a copy.
//!
//! A segment owns an export, and by that a reference to the exporter. Segments die inside of calls that hold a
//! rope's lock and are detached; what a release runs is anybody's code, so exports wait in `DROPPED` until
//! [`release`].
//!
//! The garbage collector has to know of references to objects that may refer to the rope in turn: those are
//! in `HOLDS`, by the address of their bytes. What more than one rope or view may share is no longer visited:
//! the collector counts each reference once, and would take a shared one for more than there are.

use std::collections::BTreeMap;
use std::mem::{self, ManuallyDrop};
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use pyo3::PyTraverseError;
use pyo3::ffi;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use crate::attach;

/// An export of an object's buffer, which the object may not move or free meanwhile.
pub(crate) struct Export(Box<ffi::Py_buffer>);

// SAFETY: the memory is the exporter's until the export is released, which is done attached.
unsafe impl Send for Export {}
// SAFETY: as above; through `&Export` the bytes are only read.
unsafe impl Sync for Export {}

impl Export {
    fn of(object: &Bound<'_, PyAny>) -> PyResult<Export> {
        Ok(Export(attach::export(object)?))
    }

    fn bytes(&self) -> &[u8] {
        if self.0.len <= 0 {
            return &[];
        }
        // SAFETY: PyBUF_SIMPLE exports `len` bytes from `buf` on until the export is released.
        unsafe { slice::from_raw_parts(self.0.buf.cast(), self.0.len.cast_unsigned()) }
    }

    fn release(mut self, py: Python<'_>) {
        attach::release(py, &mut self.0);
    }
}

/// The owner of a segment.
struct Owner(Option<Export>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], Export::bytes)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(export) = self.0.take() {
            forget(&export);
            let mut dropped = lock(&DROPPED);
            dropped.push(export);
            WAITING.store(dropped.len(), Ordering::Release);
        }
    }
}

/// Exports that no segment needs any more.
static DROPPED: Mutex<Vec<Export>> = Mutex::new(Vec::new());
static WAITING: AtomicUsize = AtomicUsize::new(0);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What [`lock_all`] holds.
pub(crate) type Locks = (MutexGuard<'static, Vec<Export>>, MutexGuard<'static, BTreeMap<usize, Hold>>);

/// Holds all locks of this module, none of which is held while another is taken.
pub(crate) fn lock_all() -> Locks {
    (lock(&DROPPED), lock(&HOLDS))
}

/// The bytes of any object with a contiguous buffer. No copy: the object lives, and stays exported, as long
/// as the segment.
pub(crate) fn segment(object: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    let export = Export::of(object)?;
    note(&export);
    Ok(Bytes::from_owner(Owner(Some(export))))
}

/// Looks at the bytes of any object with a contiguous buffer.
pub(crate) fn with_bytes<R>(object: &Bound<'_, PyAny>, look: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
    let export = Export::of(object)?;
    let result = look(export.bytes());
    export.release(object.py());
    Ok(result)
}

/// Releases what was dropped since. To be called attached, and without a lock.
#[inline]
pub(crate) fn release(py: Python<'_>) {
    while WAITING.load(Ordering::Acquire) > 0 {
        let dropped = {
            let mut dropped = lock(&DROPPED);
            WAITING.store(0, Ordering::Release);
            mem::take(&mut *dropped)
        };
        dropped.into_iter().for_each(|export| export.release(py));
    }
}

/// Releases when it is dropped: the last field of whatever holds segments.
pub(crate) struct Sweep;

impl Drop for Sweep {
    fn drop(&mut self) {
        if WAITING.load(Ordering::Acquire) > 0 {
            let _stays_at_shutdown = Python::try_attach(release);
        }
    }
}

/// A segment's reference to an object that the garbage collector tracks.
pub(crate) struct Hold {
    end: usize,
    /// The export's own reference, looked at only.
    exporter: ManuallyDrop<Py<PyAny>>,
    /// Whether there may be more than one handle of the segment.
    shared: bool,
}

/// By the address of the first byte. They do not overlap.
static HOLDS: Mutex<BTreeMap<usize, Hold>> = Mutex::new(BTreeMap::new());
static HELD: AtomicUsize = AtomicUsize::new(0);

fn note(export: &Export) {
    let (range, exporter) = (export.bytes().as_ptr_range(), export.0.obj);
    // SAFETY: attached, and the export holds the object.
    let tracked = !exporter.is_null() && unsafe { ffi::PyObject_GC_IsTracked(exporter) } != 0;
    if !tracked || range.is_empty() {
        return;
    }
    let (start, end) = (range.start.addr(), range.end.addr());
    let mut holds = lock(&HOLDS);
    if let Some((_, hold)) = holds.range_mut(..end).next_back().filter(|(_, hold)| hold.end > start) {
        hold.shared = true; // the same bytes twice: which handle is whose cannot be told
        return;
    }
    // SAFETY: attached; the reference is the export's, and is never given up through this.
    let exporter = unsafe { Bound::from_owned_ptr(Python::assume_attached(), exporter) };
    let exporter = ManuallyDrop::new(exporter.unbind());
    holds.insert(start, Hold { end, exporter, shared: false });
    HELD.store(holds.len(), Ordering::Release);
}

fn forget(export: &Export) {
    if HELD.load(Ordering::Acquire) == 0 {
        return;
    }
    let mut holds = lock(&HOLDS);
    let start = export.bytes().as_ptr().addr();
    // The one of two exports of the same bytes that was noted may not be this: the other is not visited then.
    if holds.get(&start).is_some_and(|hold| hold.exporter.as_ptr() == export.0.obj) {
        holds.remove(&start);
        HELD.store(holds.len(), Ordering::Release);
    }
}

/// Notes that there is to be another handle of the segments that `chunks` are of.
#[inline]
pub(crate) fn share<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) {
    if HELD.load(Ordering::Acquire) > 0 {
        let mut holds = lock(&HOLDS);
        for chunk in chunks {
            if let Some(hold) = hold_of(&mut holds, chunk) {
                hold.shared = true;
            }
        }
    }
}

/// Shows the garbage collector what the segments that `chunks` are of refer to.
pub(crate) fn traverse<'a>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
    visit: &PyVisit<'_>,
) -> Result<(), PyTraverseError> {
    if HELD.load(Ordering::Acquire) > 0 {
        let mut holds = lock(&HOLDS);
        for chunk in chunks {
            if let Some(hold) = hold_of(&mut holds, chunk).filter(|hold| !hold.shared) {
                visit.call(&*hold.exporter)?;
            }
        }
    }
    Ok(())
}

fn hold_of<'a>(holds: &'a mut BTreeMap<usize, Hold>, chunk: &[u8]) -> Option<&'a mut Hold> {
    let start = chunk.as_ptr().addr();
    holds.range_mut(..=start).next_back().map(|(_, hold)| hold).filter(|hold| start < hold.end)
}
