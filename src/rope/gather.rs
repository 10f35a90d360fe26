//! The iovecs of one send.

use std::io::IoSlice;

use super::Rope;
use crate::sys::iovec::{Iovecs, MAX_BYTES};

impl Rope {
    /// Appends iovecs for up to `max` bytes, starting at byte `offset` of piece `index`: no more than one call accepts,
    /// and none of them empty. O(log n + iovecs): the segments' ends tell how many fit before any of them is read.
    #[inline]
    pub(crate) fn gather<'a>(&'a self, index: usize, offset: usize, max: usize, iovecs: &mut Iovecs<'a>) {
        let (segments, max, max_iovecs) = (&self.segments, max.min(MAX_BYTES), self.limits().max_iovecs);
        let from = segments.start_of(index);
        let whole = segments.ending_within(index, max_iovecs, from.saturating_add(offset + max));
        let named = segments.iter_from(index).take(whole).map(|bytes| IoSlice::new(bytes));
        let held = (segments.start_of(index + whole) - from).saturating_sub(offset);
        iovecs.extend(named, held);
        iovecs.skip(offset);
        if whole < max_iovecs {
            let skip = if whole == 0 { offset } else { 0 };
            let rest = self.piece(index + whole).get(skip..).unwrap_or_default();
            let part = &rest[..rest.len().min(max - held)];
            iovecs.extend((!part.is_empty()).then(|| IoSlice::new(part)).into_iter(), part.len());
        }
    }

    /// Returns the pieces from `index` on, none of them empty.
    pub(crate) fn chunks_from(&self, index: usize) -> impl Iterator<Item = &[u8]> + Clone {
        let tail = self.filled_tail().filter(|_| index <= self.segments.count());
        self.segments.iter_from(index).map(|bytes| &**bytes).chain(tail)
    }
}
