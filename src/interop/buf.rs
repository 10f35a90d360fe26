//! [`bytes::Buf`] for ropes and cursors.

use std::borrow::Borrow;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

use crate::rope::{Cursor, Rope};

/// Reads from the front; bytes that were read leave the rope. Numbers may span segments.
///
/// # Examples
///
/// ```
/// use bytes::Buf;
/// use ropewalk::Rope;
///
/// let mut rope: Rope = [&b"\0\x01"[..], b"\0\x02rest"].into_iter().collect();
/// assert_eq!(rope.get_u32(), 0x0001_0002);
/// assert_eq!(rope, b"rest");
/// ```
impl Buf for Rope {
    #[inline]
    fn remaining(&self) -> usize {
        self.len()
    }

    #[inline]
    fn chunk(&self) -> &[u8] {
        self.piece(0)
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        describe(self.chunks(), dst)
    }

    #[inline]
    #[track_caller]
    fn advance(&mut self, count: usize) {
        Rope::advance(self, count);
    }

    /// Returns the bytes without a copy if one segment holds them, else as [`Rope::finalize`] does.
    #[inline]
    #[track_caller]
    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        match self.take_within_first(len) {
            Some(bytes) => bytes,
            None => contiguous(self.split_to(len)),
        }
    }
}

/// Reads from the cursor on; the rope keeps its bytes.
///
/// # Examples
///
/// ```
/// use bytes::Buf;
/// use ropewalk::Rope;
///
/// let rope = Rope::from("\0\0\0\x04rest");
/// assert_eq!(rope.cursor().get_u32(), 4); // the rope keeps its bytes
/// assert_eq!(rope.len(), 8);
/// ```
impl<R: Borrow<Rope>> Buf for Cursor<R> {
    #[inline]
    fn remaining(&self) -> usize {
        Cursor::remaining(self)
    }

    #[inline]
    fn chunk(&self) -> &[u8] {
        Cursor::chunk(self)
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        describe(self.chunks(), dst)
    }

    #[inline]
    #[track_caller]
    fn advance(&mut self, count: usize) {
        Cursor::advance(self, count);
    }

    /// Returns the bytes without a copy if one segment holds them, else as [`Rope::finalize`] does.
    #[track_caller]
    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        let start = self.position();
        Cursor::advance(self, len);
        contiguous(self.rope().slice(start..start + len))
    }
}

/// Fills `dst` with `chunks`; returns how many there were room for.
fn describe<'a>(chunks: impl Iterator<Item = &'a [u8]>, dst: &mut [IoSlice<'a>]) -> usize {
    let mut count = 0;
    for (slot, chunk) in dst.iter_mut().zip(chunks) {
        *slot = IoSlice::new(chunk);
        count += 1;
    }
    count
}

/// Makes a rope contiguous.
fn contiguous(rope: Rope) -> Bytes {
    match rope.finalize() {
        Ok(view) => view.into(),
        // `copy_to_bytes` cannot report a lack of memory, so allocate as every implementation does.
        Err(error) => error.into_rope().to_vec().into(),
    }
}
