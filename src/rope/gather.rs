//! The iovecs of one send.

use std::io::IoSlice;

use super::Rope;
use crate::sys::iovec::{Iovecs, MAX_BYTES};

impl Rope {
    /// Names up to `most` bytes from byte `offset` of piece `index` on: no more than one call may name or
    /// move, and no empty slice. The ends of the segments tell how many there are before any is looked at.
    #[inline]
    pub(crate) fn gather<'a>(&'a self, index: usize, offset: usize, most: usize, iovecs: &mut Iovecs<'a>) {
        let (segments, most, max_iovecs) = (&self.segments, most.min(MAX_BYTES), self.limits().max_iovecs);
        let from = segments.start_of(index);
        let whole = segments.ending_within(index, max_iovecs, from.saturating_add(offset + most));
        let named = segments.iter_from(index).take(whole).map(|bytes| IoSlice::new(bytes));
        let held = (segments.start_of(index + whole) - from).saturating_sub(offset);
        iovecs.extend(named, held);
        iovecs.skip(offset);
        if whole < max_iovecs {
            let skip = if whole == 0 { offset } else { 0 };
            let rest = self.piece(index + whole).get(skip..).unwrap_or_default();
            let part = &rest[..rest.len().min(most - held)];
            iovecs.extend((!part.is_empty()).then(|| IoSlice::new(part)).into_iter(), part.len());
        }
    }

    /// The pieces from `index` on, none of them empty.
    pub(crate) fn chunks_from(&self, index: usize) -> impl Iterator<Item = &[u8]> + Clone {
        let tail = self.filled_tail().filter(|_| index <= self.segments.count());
        self.segments.iter_from(index).map(|bytes| &**bytes).chain(tail)
    }
}
