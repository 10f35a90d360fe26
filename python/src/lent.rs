//! The room behind a rope, exported writable: what a `BufferedProtocol` hands out.

use std::io;
use std::mem::MaybeUninit;
use std::os::raw::c_int;
use std::sync::{Arc, Mutex, MutexGuard};

use compio_buf::{IoBuf, IoBufMut, SetLen};
use pyo3::ffi;
use pyo3::prelude::*;

/// Bytes that are lent at first, at least and at most: four times as many after a read that filled them,
/// half as many after one that left three quarters empty.
const FIRST: usize = 16 << 10;
const MIN: usize = 4 << 10;
const MAX: usize = 1 << 20;

/// With less room than this, and no writer there, more is lent.
const FEW: usize = 4 << 10;

/// Room that a rope has lent, shared with whatever exports it.
#[derive(Default)]
pub(crate) struct Loan(Mutex<Room>);

#[derive(Default)]
struct Room {
    /// `None` once it was given back.
    lent: Option<ropewalk::Lent>,
    /// Bytes of it that were written, from the start on.
    filled: usize,
    exports: usize,
}

impl Room {
    fn spare(&mut self) -> &mut [MaybeUninit<u8>] {
        self.lent.as_mut().map_or(&mut [], |lent| &mut lent.as_uninit()[self.filled..])
    }
}

/// What a rope has lent, and how much it would lend next.
pub(crate) struct Lending {
    loan: Arc<Loan>,
    filled: usize,
    want: usize,
    /// `true` if the room is of the heap, not the rope's.
    spilled: bool,
}

impl Default for Lending {
    fn default() -> Lending {
        Lending { loan: Arc::default(), filled: 0, want: FIRST, spilled: false }
    }
}

impl Lending {
    /// Returns the bytes that were written and are not in the rope yet.
    pub(crate) fn filled(&self) -> usize {
        self.filled
    }

    pub(crate) fn want(&self) -> usize {
        self.want
    }

    pub(crate) fn loan(&self) -> Arc<Loan> {
        Arc::clone(&self.loan)
    }

    /// Returns `true` if more room should be lent.
    pub(crate) fn is_short(&self) -> bool {
        let mut room = self.loan.room();
        let spare = room.spare().len();
        spare == 0 || (spare < FEW && room.exports == 0)
    }

    pub(crate) fn lend(&mut self, lent: ropewalk::Lent) {
        self.loan = Arc::new(Loan(Mutex::new(Room { lent: Some(lent), ..Room::default() })));
        self.spilled = false;
    }

    /// Lends one byte of the heap: what a loop reads where the rope may take nothing more.
    pub(crate) fn spill(&mut self) -> io::Result<()> {
        let mut lent = ropewalk::Rope::new().lend(1)?;
        lent.as_uninit().fill(MaybeUninit::new(0));
        self.lend(lent);
        self.spilled = true;
        Ok(())
    }

    /// Notes that `count` more bytes were written; an error is how many there was room for.
    pub(crate) fn fill(&mut self, count: usize) -> Result<(), usize> {
        let mut room = self.loan.room();
        let spare = room.spare().len();
        if count > spare {
            return Err(spare);
        }
        room.filled += count;
        self.filled += count;
        if count == spare {
            self.want = (self.want * 4).min(MAX);
        } else if count < spare / 4 {
            self.want = (self.want / 2).max(MIN);
        }
        Ok(())
    }

    /// Drops what was filled, and the room, unless it is exported: then it is the exports' from then on.
    pub(crate) fn forget(&mut self) {
        let mut room = self.loan.room();
        if room.exports == 0 {
            room.lent = None;
        }
        drop(room);
        (self.loan, self.filled) = (Arc::default(), 0);
    }

    /// Gives the room back to `rope`, with what was filled. What is exported still could be written to, so of that `rope` gets a
    /// copy, and the room is the exports' from then on. Without memory for that copy, all stays as it is.
    pub(crate) fn settle(&mut self, rope: &mut ropewalk::Rope) -> io::Result<()> {
        let mut room = self.loan.room();
        let (filled, exports) = (room.filled, room.exports);
        let Some(mut lent) = room.lent.take() else { return Ok(()) };
        // SAFETY: whether or not all of it was written, it is initialised: pages of a pool are, and what is lent of
        // the heap was filled with zeros.
        unsafe { lent.set_len(filled) };
        if exports > 0 {
            let copied = rope.try_extend_from_slice(lent.as_init());
            room.lent = Some(lent);
            copied?;
        } else if filled > 0 || !self.spilled {
            rope.take_back(lent); // also what was reserved and is empty still
        }
        drop(room);
        self.forget();
        Ok(())
    }
}

impl Loan {
    fn room(&self) -> MutexGuard<'_, Room> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// An exporter over lent room. What it exports stays where it is while an export lives.
#[pyclass(frozen, module = "ropewalk._ropewalk")]
pub(crate) struct Tail(pub(crate) Arc<Loan>);

#[pymethods]
impl Tail {
    unsafe fn __getbuffer__(
        this: Bound<'_, Self>,
        export: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let loan = &this.get().0;
        let (start, len) = {
            let mut room = loan.room();
            room.exports += 1;
            let spare = room.spare();
            (spare.as_mut_ptr().cast(), spare.len())
        };
        let len = ffi::Py_ssize_t::try_from(len).unwrap_or(ffi::Py_ssize_t::MAX);
        // SAFETY: attached, and `export` is the caller's to be filled. The room stays where it is for as long as
        // the export that was counted lives; once it was given back, none of it is exported.
        let refused = unsafe { ffi::PyBuffer_FillInfo(export, this.as_ptr(), start, len, 0, flags) };
        if refused != 0 {
            loan.room().exports -= 1;
            return Err(PyErr::fetch(this.py()));
        }
        Ok(())
    }

    unsafe fn __releasebuffer__(&self, _export: *mut ffi::Py_buffer) {
        self.0.room().exports -= 1;
    }
}
