//! A finalised rope as an object of the buffer protocol.

use std::ops::{Range, RangeBounds};
use std::os::raw::c_int;

use bytes::Bytes;
use pyo3::PyTraverseError;
use pyo3::exceptions::{PyIndexError, PyMemoryError, PyOverflowError, PyTypeError};
use pyo3::ffi;
use pyo3::gc::PyVisit;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PySlice};

use crate::count::text;
use crate::exports::Exports;
use crate::fork::{self, Born};
use crate::pushed::{self, Segment, Sweep};

/// All bytes of a rope, contiguous, read-only: an object of the buffer protocol.
///
/// ``memoryview(view)``, ``numpy.frombuffer(view)``, ``pyarrow.py_buffer(view)``, ``hashlib``, ``file.write(view)`` and
/// pickle's protocol 5 use it where it lies, without a copy, and keep its pages as long as they need them.
///
/// ``View(buffer)`` is a view of any contiguous buffer, without a copy; ``view[a:b]`` one that shares the memory, O(1).
/// Equal to, and hashed like, the same ``bytes``; ``needle in view`` takes bytes, or one byte, and searches, as with ``bytes``.
#[pyclass(frozen, weakref, sequence, module = "ropewalk")]
pub(crate) struct View {
    bytes: Bytes,
    exports: Exports,
    copied: usize,
    mapped: usize,
    born: Born,
    _sweep: Sweep,
}

impl View {
    /// Wraps a finalised rope whose segments referred to `exports`.
    pub(crate) fn of(py: Python<'_>, view: ropewalk::View, exports: &Exports) -> View {
        let (copied, mapped) = (view.copied_bytes(), view.mapped_bytes());
        let exports = exports.of(py, [&view[..]]);
        View { copied, mapped, ..View::part(Segment { bytes: view.into(), exports }) }
    }

    pub(crate) fn part(Segment { bytes, exports }: Segment) -> View {
        View { bytes, exports, copied: 0, mapped: 0, born: Born::now(), _sweep: Sweep }
    }

    fn bytes(&self) -> PyResult<&Bytes> {
        self.born.check("view")?;
        Ok(&self.bytes)
    }

    /// Returns a part of the bytes.
    pub(crate) fn segment(&self, py: Python<'_>, range: impl RangeBounds<usize>) -> PyResult<Segment> {
        let bytes = self.bytes()?.slice(range);
        let exports = self.exports.of(py, [&bytes[..]]);
        Ok(Segment { bytes, exports })
    }
}

#[pymethods]
impl View {
    #[new]
    fn new(buffer: &Bound<'_, PyAny>) -> PyResult<View> {
        Ok(View::part(segment(buffer)?))
    }

    /// Bytes that had to be copied to be contiguous.
    #[getter]
    fn copied_bytes(&self) -> usize {
        self.copied
    }

    /// Bytes whose pages were given a second address. What was neither copied nor mapped is borrowed.
    #[getter]
    fn mapped_bytes(&self) -> usize {
        self.mapped
    }

    /// Decodes the bytes as text, as ``bytes.decode`` does, from where they lie.
    #[pyo3(signature = (encoding="utf-8", errors="strict"))]
    fn decode<'py>(this: &Bound<'py, Self>, encoding: &str, errors: &str) -> PyResult<Bound<'py, PyAny>> {
        this.py().get_type::<pyo3::types::PyString>().call1((this, encoding, errors))
    }

    /// Returns a copy as ``bytes``, O(len). The GIL is released meanwhile. Raises MemoryError without memory for it.
    fn tobytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.bytes()?;
        PyBytes::new_with(py, bytes.len(), |copy| {
            py.detach(|| copy.copy_from_slice(bytes));
            Ok(())
        })
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.tobytes(py)
    }

    fn __len__(&self) -> usize {
        self.bytes.len()
    }

    fn __getitem__<'py>(&self, at: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let (py, bytes) = (at.py(), self.bytes()?);
        let Ok(slice) = at.cast::<PySlice>() else {
            return Ok(bytes[index(at, bytes.len())?].into_pyobject(py)?.into_any());
        };
        let part = self.segment(py, range(slice, bytes.len())?)?;
        Ok(Bound::new(py, View::part(part))?.into_any())
    }

    fn __contains__(&self, py: Python<'_>, needle: &Bound<'_, PyAny>) -> PyResult<bool> {
        let (rope, needle) = (ropewalk::Rope::from(self.bytes()?.clone()), self::needle(needle)?);
        Ok(py.detach(|| rope.find(&needle).is_some()))
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let py = other.py();
        let bytes = self.bytes()?;
        match pushed::with_bytes(other, |other| bytes[..] == *other) {
            Ok(equal) => Ok(equal.into_pyobject(py)?.to_owned().into_any().unbind()),
            Err(_no_buffer) => Ok(py.NotImplemented()),
        }
    }

    /// Hashes a copy as `bytes`, which equal views have to match: a memoryview would ask this object for its hash.
    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        self.tobytes(py)?.hash()
    }

    fn __repr__(&self) -> String {
        format!(
            "<ropewalk.View of {} bytes, {} copied, {} mapped>",
            self.bytes.len(),
            self.copied,
            self.mapped
        )
    }

    fn __reduce_ex__<'py>(
        this: &Bound<'py, Self>,
        protocol: u32,
    ) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyAny>,))> {
        let py = this.py();
        let class = this.get_type().into_any();
        if protocol < 5 {
            return Ok((class, (this.get().tobytes(py)?.into_any(),)));
        }
        let buffer = py.import(intern!(py, "pickle"))?.getattr(intern!(py, "PickleBuffer"))?;
        Ok((class, (buffer.call1((this,))?,)))
    }

    unsafe fn __getbuffer__(
        this: Bound<'_, Self>,
        export: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let bytes = this.get().bytes()?;
        let len = ffi::Py_ssize_t::try_from(bytes.len())?;
        let start = bytes.as_ptr().cast_mut().cast();
        // SAFETY: attached, and `export` is the caller's to be filled. It is read-only, and holds this object,
        // whose bytes neither move nor change.
        match unsafe { ffi::PyBuffer_FillInfo(export, this.as_ptr(), start, len, 1, flags) } {
            0 => fork::export(bytes),
            _ => return Err(PyErr::fetch(this.py())),
        }
        Ok(())
    }

    unsafe fn __releasebuffer__(&self, _export: *mut ffi::Py_buffer) {
        fork::unexport(&self.bytes);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.exports.traverse(&visit)
    }
}

/// Returns the bytes of a view, or of any other object by an export of its buffer.
pub(crate) fn segment(buffer: &Bound<'_, PyAny>) -> PyResult<Segment> {
    match buffer.cast::<View>() {
        Ok(view) => view.get().segment(buffer.py(), ..),
        Err(_) => pushed::segment(buffer),
    }
}

/// Returns the bytes to search for: a copy of a buffer's bytes, or one byte by its number.
pub(crate) fn needle(object: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    let copied = pushed::with_bytes(object, |bytes| {
        let mut copy = Vec::new();
        copy.try_reserve_exact(bytes.len()).map(|()| {
            copy.extend_from_slice(bytes);
            copy
        })
    });
    match copied {
        Ok(copy) => copy.map_err(|error| PyMemoryError::new_err(format!("to look for a buffer: {error}"))),
        Err(no_buffer) => object.extract::<u8>().map(|byte| vec![byte]).map_err(|_| no_buffer),
    }
}

fn index(at: &Bound<'_, PyAny>, len: usize) -> PyResult<usize> {
    let index = match at.extract::<isize>() {
        Err(error) if !error.is_instance_of::<PyOverflowError>(at.py()) => {
            return Err(PyTypeError::new_err("an index is an integer or a slice"));
        }
        Ok(at) if at < 0 => at.checked_add_unsigned(len),
        extracted => extracted.ok(),
    };
    let index = index.and_then(|index| usize::try_from(index).ok()).filter(|&index| index < len);
    index.ok_or_else(|| PyIndexError::new_err(format!("index {} is out of range for {len} bytes", text(at))))
}

/// Returns the bounds of a slice whose step is 1.
pub(crate) fn range(slice: &Bound<'_, PySlice>, len: usize) -> PyResult<Range<usize>> {
    let indices = slice.indices(isize::try_from(len)?)?;
    if indices.step != 1 {
        let message =
            format!("a slice shares the memory: its step is 1, not {}; slice bytes() of it", indices.step);
        return Err(PyTypeError::new_err(message));
    }
    let from = indices.start.cast_unsigned();
    Ok(from..from.max(indices.stop.cast_unsigned()))
}
