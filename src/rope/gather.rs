//! The iovecs of one send.

use std::io::IoSlice;

use smallvec::SmallVec;

use super::Rope;
use crate::sys::iovec::{MAX_BYTES, MAX_IOVECS};

/// The iovecs of one call, on the stack.
pub(crate) type Iovecs<'a> = SmallVec<[IoSlice<'a>; MAX_IOVECS]>;

impl Rope {
    /// Describes up to `most` bytes from byte `offset` of piece `index` on: no more than one call may
    /// name or move, and no empty slice.
    #[inline]
    pub(crate) fn gather<'a>(&'a self, index: usize, offset: usize, most: usize, iovecs: &mut Iovecs<'a>) {
        let mut left = most.min(MAX_BYTES);
        let mut pieces = self.chunks_from(index).take(MAX_IOVECS);
        let Some(first) = pieces.next() else { return };
        let mut piece = &first[offset..];
        while piece.len() < left {
            left -= piece.len();
            iovecs.push(IoSlice::new(piece));
            match pieces.next() {
                Some(next) => piece = next,
                None => return,
            }
        }
        iovecs.push(IoSlice::new(&piece[..left]));
    }

    /// The pieces from `index` on, none of them empty.
    pub(crate) fn chunks_from(&self, index: usize) -> impl Iterator<Item = &[u8]> + Clone {
        let tail = self.tail.iter().map(|tail| tail.filled()).filter(|tail| !tail.is_empty());
        let tail = tail.skip(index.saturating_sub(self.segments.count()));
        self.segments.iter_from(index).map(|bytes| &**bytes).chain(tail)
    }
}
