//! The owned pieces of a rope, in order, with the position of each.
//!
//! ```text
//! entries  [ seg | seg | seg ]
//! ends       e0    e1    e2           segment i ends at position e_i - start
//! ```
//!
//! `start` and the ends only ever differ by lengths; they wrap, so the front can move both ways and
//! nothing is renumbered when bytes leave or arrive there.

use std::mem;

use bytes::{Buf, Bytes};

use super::entries::Entries;

#[derive(Clone)]
struct Entry {
    /// Where the segment ends, counted from the same origin as `Segments::start`.
    end: usize,
    /// Never empty.
    bytes: Bytes,
}

#[derive(Clone, Default)]
pub(crate) struct Segments {
    entries: Entries<Entry>,
    /// The origin of the positions: where the first segment starts.
    start: usize,
    /// Where the last segment ends.
    end: usize,
}

impl Segments {
    /// Bytes in all segments. O(1).
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.end.wrapping_sub(self.start)
    }

    /// Number of segments. O(1).
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.entries.len()
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&Bytes> {
        self.entries.get(index).map(|entry| &entry.bytes)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Bytes> + Clone {
        self.iter_from(0)
    }

    /// The segments from `index` on, none if there are fewer. O(1).
    pub(crate) fn iter_from(&self, index: usize) -> impl DoubleEndedIterator<Item = &Bytes> + Clone {
        self.entries.iter_from(index).map(|entry| &entry.bytes)
    }

    /// Where segment `index` starts.
    #[inline]
    pub(crate) fn start_of(&self, index: usize) -> usize {
        match index.checked_sub(1).and_then(|before| self.entries.get(before)) {
            Some(before) => before.end.wrapping_sub(self.start),
            None => 0,
        }
    }

    /// The segment that holds the byte at `position`; `count()` if none does. O(log n).
    #[inline]
    pub(crate) fn index_of(&self, position: usize) -> usize {
        self.ending_within(0, self.count(), position)
    }

    /// How many of the `count` segments from `index` on end at `position` or before. O(log count).
    #[inline]
    pub(crate) fn ending_within(&self, index: usize, count: usize, position: usize) -> usize {
        let to = index.saturating_add(count);
        self.entries.partition_point(index, to, |entry| entry.end.wrapping_sub(self.start) <= position)
    }

    /// # Panics
    ///
    /// If there would be more than [`usize::MAX`] bytes, all of which may be the same ones.
    #[inline]
    #[track_caller]
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.check_more(bytes.len());
        self.end = self.end.wrapping_add(bytes.len());
        self.entries.push(Entry { end: self.end, bytes });
    }

    #[inline]
    #[track_caller]
    fn check_more(&self, more: usize) {
        let len = self.len();
        assert!(len.checked_add(more).is_some(), "{len} and {more} bytes are more than a rope can hold");
    }

    /// Makes room for so many more.
    pub(crate) fn reserve(&mut self, count: usize) {
        self.entries.reserve(count);
    }

    /// # Panics
    ///
    /// As [`push`](Segments::push).
    #[inline]
    #[track_caller]
    pub(crate) fn push_front(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.check_more(bytes.len());
        let before = self.start.wrapping_sub(bytes.len());
        self.entries.push_front(Entry { end: self.start, bytes });
        self.start = before;
    }

    /// Takes the first segment. Amortised O(1).
    #[inline]
    pub(crate) fn pop_front(&mut self) -> Option<Bytes> {
        let first = self.entries.pop_front()?;
        self.start = first.end;
        Some(first.bytes)
    }

    /// Takes the only segment, an empty one if there is none; nothing if there are more.
    #[inline]
    pub(crate) fn take_single(&mut self) -> Option<Bytes> {
        match self.count() {
            0 => Some(Bytes::new()),
            1 => self.pop(),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn last(&self) -> Option<&Bytes> {
        self.entries.last().map(|entry| &entry.bytes)
    }

    /// Takes the last segment.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let last = self.entries.pop()?.bytes;
        self.end = self.end.wrapping_sub(last.len());
        Some(last)
    }

    /// Drops the first `count` bytes, of at least as many.
    #[inline]
    pub(crate) fn advance(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            let Some(first) = self.entries.first_mut() else { return };
            let len = first.bytes.len();
            if left < len {
                first.bytes.advance(left);
                self.start = self.start.wrapping_add(left);
                return;
            }
            left -= len;
            // Dropped at the end of the turn, by when it has left: an owner's drop may panic.
            let _gone = self.pop_front();
        }
    }

    /// Takes the first `len` bytes if they lie in one segment and are not nothing.
    #[inline]
    pub(crate) fn take_within_first(&mut self, len: usize) -> Option<Bytes> {
        let first = &mut self.entries.first_mut()?.bytes;
        if len == first.len() {
            return self.pop_front();
        }
        let inside = (0 < len && len < first.len()).then(|| first.split_to(len))?;
        self.start = self.start.wrapping_add(len);
        Some(inside)
    }

    /// Takes the first `at` bytes off. O(segments on the smaller side).
    pub(crate) fn split_to(&mut self, at: usize) -> Segments {
        let whole = self.index_of(at);
        if whole > self.count() / 2 {
            let rest = self.split_off(at);
            return mem::replace(self, rest);
        }
        let (cut, end) = (self.start.wrapping_add(at), self.start.wrapping_add(self.start_of(whole)));
        let mut front = Segments { entries: self.entries.split_to(whole), start: self.start, end };
        let inside = cut.wrapping_sub(end);
        if let (true, Some(first)) = (inside > 0, self.entries.first_mut()) {
            front.push(first.bytes.split_to(inside));
        }
        self.start = cut;
        front
    }

    /// Takes everything from position `at` on. O(segments taken).
    pub(crate) fn split_off(&mut self, at: usize) -> Segments {
        let index = self.index_of(at);
        let inside = at - self.start_of(index);
        let cut = self.start.wrapping_add(at);
        let mut rest = Segments { entries: self.entries.split_off(index), start: cut, end: self.end };
        if let (true, Some(first)) = (inside > 0, rest.entries.first_mut()) {
            self.entries.push(Entry { end: cut, bytes: first.bytes.split_to(inside) });
        }
        self.end = cut;
        rest
    }

    /// Moves all of `other` behind the last segment. O(segments of the shorter one).
    ///
    /// # Panics
    ///
    /// As [`push`](Segments::push).
    #[track_caller]
    pub(crate) fn append(&mut self, mut other: Segments) {
        self.check_more(other.len());
        if self.count() < other.count() {
            mem::swap(self, &mut other);
            other.into_iter().rev().for_each(|bytes| self.push_front(bytes));
        } else {
            self.extend(other);
        }
    }

    /// The segments of `from..to`, sharing their memory. O(log n + segments in the range).
    pub(crate) fn slice(&self, from: usize, to: usize) -> Segments {
        if from >= to {
            return Segments::default();
        }
        let (first, last) = (self.index_of(from), self.index_of(to - 1));
        let mut entries: Entries<Entry> =
            self.entries.iter_from(first).take(last + 1 - first).cloned().collect();
        let (start, end) = (self.start.wrapping_add(from), self.start.wrapping_add(to));
        if let Some(last) = entries.last_mut() {
            last.bytes.truncate(last.bytes.len() - last.end.wrapping_sub(end));
            last.end = end;
        }
        if let Some(first) = entries.first_mut() {
            first.bytes.advance(first.bytes.len() - first.end.wrapping_sub(start));
        }
        Segments { entries, start, end }
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn assert_invariants(&self) {
        let mut end = self.start;
        for entry in self.entries.iter_from(0) {
            assert!(!entry.bytes.is_empty());
            end = end.wrapping_add(entry.bytes.len());
            assert_eq!(entry.end, end);
        }
        assert_eq!(self.end, end);
    }
}

impl Extend<Bytes> for Segments {
    fn extend<I: IntoIterator<Item = Bytes>>(&mut self, segments: I) {
        segments.into_iter().for_each(|bytes| self.push(bytes));
    }
}

/// The segments, one after the other.
pub(crate) struct IntoSegments(Segments);

impl IntoIterator for Segments {
    type Item = Bytes;
    type IntoIter = IntoSegments;

    fn into_iter(self) -> IntoSegments {
        IntoSegments(self)
    }
}

impl Iterator for IntoSegments {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.0.pop_front()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.count(), Some(self.0.count()))
    }
}

impl DoubleEndedIterator for IntoSegments {
    fn next_back(&mut self) -> Option<Bytes> {
        self.0.pop()
    }
}

impl ExactSizeIterator for IntoSegments {}
