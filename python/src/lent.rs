//! The room behind a rope, exported writable: what a `BufferedProtocol` hands out.

use std::io;
use std::mem::MaybeUninit;
use std::os::raw::c_int;

use compio_buf::{IoBuf, IoBufMut, SetLen};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::rope::Rope;

/// Bytes that are lent at first, at least and at most: four times as many after a read that filled them,
/// half as many after one that left three quarters empty.
const FIRST: usize = 16 << 10;
const MIN: usize = 4 << 10;
const MAX: usize = 1 << 20;

/// With less room than this, and nobody writing there, more is lent.
const FEW: usize = 4 << 10;

/// What a rope has lent, and how much of it was filled.
pub(crate) struct Lending {
    lent: Option<ropewalk::Lent>,
    filled: usize,
    want: usize,
}

impl Default for Lending {
    fn default() -> Lending {
        Lending { lent: None, filled: 0, want: FIRST }
    }
}

impl Lending {
    pub(crate) fn filled(&self) -> usize {
        self.filled
    }

    pub(crate) fn is_out(&self) -> bool {
        self.lent.is_some()
    }

    pub(crate) fn want(&self) -> usize {
        self.want
    }

    /// Whether there is too little room left to read into.
    pub(crate) fn is_short(&mut self) -> bool {
        self.room().len() < FEW
    }

    pub(crate) fn lend(&mut self, lent: ropewalk::Lent) {
        (self.lent, self.filled) = (Some(lent), 0);
    }

    /// Lends one byte of the heap: what a loop reads where the rope may take nothing more.
    pub(crate) fn spill(&mut self) -> io::Result<()> {
        self.lend(ropewalk::Rope::new().lend(1)?);
        self.room().fill(MaybeUninit::new(0));
        Ok(())
    }

    /// What can still be filled.
    pub(crate) fn room(&mut self) -> &mut [MaybeUninit<u8>] {
        let filled = self.filled;
        self.lent.as_mut().map_or(&mut [], |lent| &mut lent.as_uninit()[filled..])
    }

    /// Notes that `count` more bytes were written; `false` if there was no room for so many.
    pub(crate) fn fill(&mut self, count: usize) -> bool {
        let room = self.room().len();
        if count > room {
            return false;
        }
        self.filled += count;
        if count == room {
            self.want = (self.want * 4).min(MAX);
        } else if count < room / 4 {
            self.want = (self.want / 2).max(MIN);
        }
        true
    }

    /// Gives back to `rope` what was filled.
    pub(crate) fn settle(&mut self, rope: &mut ropewalk::Rope) {
        if let Some(mut lent) = self.lent.take() {
            // SAFETY: whether or not all of it was written, it is initialised: pages of a pool are, and
            // what is lent of the heap was filled with zeros.
            unsafe { lent.set_len(self.filled) };
            if lent.as_init().is_empty() {
                drop(lent)
            } else {
                rope.take_back(lent)
            }
            self.filled = 0;
        }
    }
}

/// An exporter over the room of a rope, whatever that is when it is exported. While an export lives the rope
/// refuses what would move the room or read from it.
#[pyclass(frozen, module = "ropewalk._ropewalk")]
pub(crate) struct Tail(pub(crate) Py<Rope>);

#[pymethods]
impl Tail {
    unsafe fn __getbuffer__(
        this: Bound<'_, Self>,
        export: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let rope = this.get().0.get();
        let (start, len) = rope.export(this.py())?;
        // SAFETY: attached, and `export` is the caller's to be filled. The room stays where it is for as long as
        // the export that was counted lives, and the rope as long as this object, which the export holds.
        let refused = unsafe { ffi::PyBuffer_FillInfo(export, this.as_ptr(), start, len, 0, flags) };
        if refused != 0 {
            rope.unexport();
            return Err(PyErr::fetch(this.py()));
        }
        Ok(())
    }

    unsafe fn __releasebuffer__(&self, _export: *mut ffi::Py_buffer) {
        self.0.get().unexport();
    }
}
