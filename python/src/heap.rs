//! Memory for what cannot fail.
//!
//! Where a table of Rust's collections gets no memory, the process is aborted. Python's callers expect MemoryError; so
//! whatever is about to allocate in proportion to a rope's segments asks first.

use std::hint::black_box;

use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;

/// Bytes of an entry in a rope's table, and of one in its list of exports, rounded up.
const SEGMENT: usize = 96;

/// Bytes for what is of one size: owners of segments, and the like.
const FEW: usize = 4 << 10;

/// Raises MemoryError unless the heap has memory for tables of `segments` now. It is not kept: another thread may be
/// first to use it.
pub(crate) fn check(segments: usize) -> PyResult<()> {
    let bytes = segments.saturating_mul(SEGMENT).saturating_add(FEW);
    let mut memory = Vec::<u8>::new();
    let refused = memory.try_reserve_exact(bytes);
    black_box(&mut memory); // or the compiler leaves the allocation out
    refused.map_err(|error| {
        PyMemoryError::new_err(format!("no heap memory for {bytes} bytes, for {segments} segments: {error}"))
    })
}
