//! [`bytes::Buf`]: a rope is read from its front, a cursor from where it stands.

use std::borrow::Borrow;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

use crate::rope::{Cursor, Rope};

/// What is taken leaves the rope. Numbers may lie across segments.
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

    /// Without a copy if one segment holds the bytes, or as cheaply as [`Rope::finalize`] can.
    #[inline]
    #[track_caller]
    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        match self.take_within_first(len) {
            Some(bytes) => bytes,
            None => contiguous(self.split_to(len)),
        }
    }
}

/// What is taken stays in the rope.
///
/// # Examples
///
/// ```
/// use bytes::Buf;
/// use ropewalk::Rope;
///
/// let rope = Rope::from("\0\0\0\x04rest");
/// assert_eq!(rope.cursor().get_u32(), 4); // only looked at
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

    /// Without a copy if one segment holds the bytes, or as cheaply as [`Rope::finalize`] can.
    #[track_caller]
    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        let start = self.position();
        Cursor::advance(self, len);
        contiguous(self.rope().slice(start..start + len))
    }
}

fn describe<'a>(chunks: impl Iterator<Item = &'a [u8]>, dst: &mut [IoSlice<'a>]) -> usize {
    let mut count = 0;
    for (slot, chunk) in dst.iter_mut().zip(chunks) {
        *slot = IoSlice::new(chunk);
        count += 1;
    }
    count
}

fn contiguous(rope: Rope) -> Bytes {
    match rope.finalize() {
        Ok(view) => view.into(),
        // The trait cannot report a lack of memory; like every implementation of it, allocate and see.
        Err(error) => error.into_rope().to_vec().into(),
    }
}
