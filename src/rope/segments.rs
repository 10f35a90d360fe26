//! The owned pieces of a rope, in order, with the position of each.
//!
//! ```text
//! entries  [ ·  |  ·  | seg | seg | seg ]        · gap: taken off the front, or left for what comes before
//!                     ^head
//! ends      .     .     e0    e1    e2           segment i ends at position e_i - start
//! ```
//!
//! `start` and the ends only ever differ by lengths; they wrap, so the front can move both ways and
//! nothing is renumbered when bytes leave or arrive there.

use std::mem;

use bytes::{Buf, Bytes};
use smallvec::SmallVec;

/// Segments kept inside the rope itself.
const INLINE: usize = 2;

/// Fewest entries of a table that grows with a gap in front, and of one that shrinks.
const LARGE: usize = 64;

#[derive(Clone)]
struct Entry {
    /// Where the segment ends, counted from the same origin as `Segments::start`.
    end: usize,
    /// Never empty from `head` on, always empty before it.
    bytes: Bytes,
}

impl Entry {
    const EMPTY: Entry = Entry { end: 0, bytes: Bytes::new() };
}

#[derive(Default)]
pub(crate) struct Segments {
    entries: SmallVec<[Entry; INLINE]>,
    /// Entries before it are empty.
    head: usize,
    /// The origin of the positions: where the first segment starts.
    start: usize,
    /// Where the last segment ends.
    end: usize,
}

impl Segments {
    /// One segment, which is not empty.
    #[inline]
    pub(crate) fn of(bytes: Bytes) -> Segments {
        let end = bytes.len();
        let entries = SmallVec::from_buf_and_len([Entry { end, bytes }, Entry::EMPTY], 1);
        Segments { entries, head: 0, start: 0, end }
    }

    /// Bytes in all segments. O(1).
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.end.wrapping_sub(self.start)
    }

    /// Number of segments. O(1).
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.entries.len() - self.head
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&Bytes> {
        self.live().get(index).map(|entry| &entry.bytes)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Bytes> + ExactSizeIterator + Clone {
        self.iter_from(0)
    }

    /// The segments from `index` on, none if there are fewer. O(1).
    pub(crate) fn iter_from(
        &self,
        index: usize,
    ) -> impl DoubleEndedIterator<Item = &Bytes> + ExactSizeIterator + Clone {
        self.live().get(index..).unwrap_or_default().iter().map(|entry| &entry.bytes)
    }

    /// Where segment `index` starts.
    #[inline]
    pub(crate) fn start_of(&self, index: usize) -> usize {
        match index.checked_sub(1).and_then(|before| self.live().get(before)) {
            Some(before) => before.end.wrapping_sub(self.start),
            None => 0,
        }
    }

    /// The segment that holds the byte at `position`; `count()` if none does. O(log n).
    #[inline]
    pub(crate) fn index_of(&self, position: usize) -> usize {
        self.live().partition_point(|entry| entry.end.wrapping_sub(self.start) <= position)
    }

    /// How many of the `count` segments from `index` on end at `position` or before. O(log count).
    #[inline]
    pub(crate) fn ending_within(&self, index: usize, count: usize, position: usize) -> usize {
        let some = self.live().get(index..).unwrap_or_default();
        let some = &some[..some.len().min(count)];
        some.partition_point(|entry| entry.end.wrapping_sub(self.start) <= position)
    }

    /// Amortised O(1).
    ///
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
        if self.entries.len() == self.entries.capacity() {
            self.make_space();
        }
        self.end = self.end.wrapping_add(bytes.len());
        self.entries.push(Entry { end: self.end, bytes });
    }

    /// Makes room for so many more, and in a large table for some in front of them.
    pub(crate) fn reserve(&mut self, count: usize) {
        if self.entries.is_empty() && count >= LARGE {
            self.entries = with_gap(count / 8, 0, count);
            self.head = count / 8;
        } else {
            self.entries.reserve(count);
        }
    }

    #[inline]
    #[track_caller]
    fn check_more(&self, more: usize) {
        let len = self.len();
        assert!(len.checked_add(more).is_some(), "{len} and {more} bytes are more than a rope can hold");
    }

    /// Amortised O(1): the table is copied when the gap in front is used up, and left with one as large as itself.
    #[inline]
    #[track_caller]
    pub(crate) fn push_front(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.check_more(bytes.len());
        if self.head == 0 {
            self.open_gap(self.entries.len().max(1));
        }
        let before = self.start.wrapping_sub(bytes.len());
        self.entries[self.head - 1] = Entry { end: self.start, bytes };
        self.head -= 1;
        self.start = before;
    }

    /// Takes the first segment. Amortised O(1).
    #[inline]
    pub(crate) fn pop_front(&mut self) -> Option<Bytes> {
        let first = self.entries.get_mut(self.head)?;
        let bytes = mem::take(&mut first.bytes);
        self.start = first.end;
        self.head += 1;
        self.forget_taken();
        Some(bytes)
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
        self.live().last().map(|entry| &entry.bytes)
    }

    /// Takes the last segment.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let last = if self.head < self.entries.len() { self.entries.pop() } else { None }?.bytes;
        self.end = self.end.wrapping_sub(last.len());
        self.forget_taken();
        Some(last)
    }

    /// Drops the first `count` bytes, of at least as many.
    #[inline]
    pub(crate) fn advance(&mut self, count: usize) {
        let mut left = count;
        let entries = &mut self.entries[..];
        while left > 0 {
            let first = &mut entries[self.head];
            let len = first.bytes.len();
            if left < len {
                first.bytes.advance(left);
                self.start = self.start.wrapping_add(left);
                return;
            }
            left -= len;
            // Dropped at the end of the turn, by when it has left: an owner's drop may panic.
            let _gone = mem::take(&mut first.bytes);
            self.start = first.end;
            self.head += 1;
        }
        self.forget_taken();
    }

    /// Takes the `len` bytes behind the first `skip`, which are dropped, if all of these lie in the first segment and `len`
    /// is not 0.
    #[inline]
    pub(crate) fn take_within_first(&mut self, skip: usize, len: usize) -> Option<Bytes> {
        let first = &mut self.entries.get_mut(self.head)?.bytes;
        let rest = first.len().checked_sub(skip.checked_add(len)?)?;
        if len == 0 {
            return None;
        }
        first.advance(skip);
        if rest == 0 {
            return self.pop_front();
        }
        self.start = self.start.wrapping_add(skip + len);
        Some(first.split_to(len))
    }

    /// Takes the first `at` bytes off. O(segments on the smaller side).
    pub(crate) fn split_to(&mut self, at: usize) -> Segments {
        let whole = self.index_of(at);
        if whole > self.count() / 2 {
            let rest = self.split_off(at);
            return mem::replace(self, rest);
        }
        let (cut, end) = (self.start.wrapping_add(at), self.start.wrapping_add(self.start_of(whole)));
        let taken = self.entries[self.head..self.head + whole].iter_mut();
        let entries = taken.map(|entry| mem::replace(entry, Entry::EMPTY)).collect();
        let mut front = Segments { entries, head: 0, start: self.start, end };
        self.head += whole;
        let inside = cut.wrapping_sub(end);
        if inside > 0 {
            front.push(self.entries[self.head].bytes.split_to(inside));
        }
        self.start = cut;
        self.forget_taken();
        front
    }

    /// Takes everything from position `at` on. O(segments taken).
    pub(crate) fn split_off(&mut self, at: usize) -> Segments {
        let index = self.index_of(at);
        let inside = at - self.start_of(index);
        let cut = self.start.wrapping_add(at);
        let mut rest: SmallVec<[Entry; INLINE]> = self.entries.drain(self.head + index..).collect();
        if let (true, Some(first)) = (inside > 0, rest.first_mut()) {
            self.entries.push(Entry { end: cut, bytes: first.bytes.split_to(inside) });
        }
        let rest = Segments { entries: rest, head: 0, start: cut, end: self.end };
        self.end = cut;
        self.forget_taken();
        rest
    }

    /// Moves all of `other` behind the last segment. Amortised O(segments of the shorter one).
    #[track_caller]
    pub(crate) fn append(&mut self, mut other: Segments) {
        self.check_more(other.len());
        if self.count() >= other.count() {
            self.extend(other);
        } else {
            let front = mem::take(self);
            if other.head < front.count() {
                other.open_gap(front.count().max(other.entries.len()));
            }
            front.into_iter().rev().for_each(|bytes| other.push_front(bytes));
            *self = other;
        }
    }

    /// The segments of `from..to`, sharing their memory. O(log n + segments in the range).
    pub(crate) fn slice(&self, from: usize, to: usize) -> Segments {
        if from >= to {
            return Segments::default();
        }
        let (first, last) = (self.index_of(from), self.index_of(to - 1));
        let mut entries = shared(&self.live()[first..=last]);
        let (start, end) = (self.start.wrapping_add(from), self.start.wrapping_add(to));
        if let Some(last) = entries.last_mut() {
            last.bytes.truncate(last.bytes.len() - last.end.wrapping_sub(end));
            last.end = end;
        }
        if let Some(first) = entries.first_mut() {
            first.bytes.advance(first.bytes.len() - first.end.wrapping_sub(start));
        }
        Segments { entries, head: 0, start, end }
    }

    #[inline]
    fn live(&self) -> &[Entry] {
        &self.entries[self.head..]
    }

    /// Lets go of the gap in front if nothing is left behind it, and of a table that has become much too large.
    #[inline]
    fn forget_taken(&mut self) {
        if self.head == self.entries.len() && self.head > 0 {
            self.entries.clear();
            self.head = 0;
        }
        if self.entries.capacity() >= 16 * LARGE {
            self.shrink();
        }
    }

    /// Copies a table of which less than an eighth is used. Amortised: as many segments were taken before.
    #[cold]
    fn shrink(&mut self) {
        if self.count() < self.entries.capacity() / 8 {
            let live = self.entries.drain(self.head..).collect::<SmallVec<_>>();
            (self.entries, self.head) = (live, 0);
        }
    }

    /// Makes space for another entry: in place of the gap, or in a larger table that keeps one.
    #[cold]
    fn make_space(&mut self) {
        let len = self.entries.len();
        if self.head >= len.div_ceil(2) {
            self.close_gap();
        } else if len >= LARGE {
            let (gap, live) = (len / 8, self.count());
            let mut entries = with_gap(gap, live, live);
            entries.extend(self.entries.drain(self.head..));
            (self.entries, self.head) = (entries, gap);
        }
    }

    fn close_gap(&mut self) {
        self.entries.drain(..self.head);
        self.head = 0;
    }

    /// Widens the gap in front by `gap` entries. O(n).
    #[cold]
    fn open_gap(&mut self, gap: usize) {
        let live = self.count();
        let mut entries = with_gap(self.head + gap, live, 0);
        entries.extend(self.entries.drain(self.head..));
        (self.entries, self.head) = (entries, self.head + gap);
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn assert_invariants(&self) {
        assert!(self.head <= self.entries.len());
        assert!(self.entries[..self.head].iter().all(|entry| entry.bytes.is_empty()));
        let mut end = self.start;
        for entry in self.live() {
            assert!(!entry.bytes.is_empty());
            end = end.wrapping_add(entry.bytes.len());
            assert_eq!(entry.end, end);
        }
        assert_eq!(self.end, end);
    }
}

/// A table of `gap` empty entries, with room for `live` behind them and `spare` more.
fn with_gap(gap: usize, live: usize, spare: usize) -> SmallVec<[Entry; INLINE]> {
    let mut entries = SmallVec::with_capacity(gap + live + spare);
    entries.resize(gap, Entry::EMPTY);
    entries
}

/// The same bytes once more. Many are cloned faster into a vector.
fn shared(entries: &[Entry]) -> SmallVec<[Entry; INLINE]> {
    if entries.len() > INLINE { SmallVec::from_vec(entries.to_vec()) } else { entries.into() }
}

impl Clone for Segments {
    fn clone(&self) -> Segments {
        Segments { entries: shared(self.live()), head: 0, start: self.start, end: self.end }
    }
}

impl Extend<Bytes> for Segments {
    fn extend<I: IntoIterator<Item = Bytes>>(&mut self, segments: I) {
        segments.into_iter().for_each(|bytes| self.push(bytes));
    }
}

/// The segments, one after the other.
pub(crate) struct IntoSegments(smallvec::IntoIter<[Entry; INLINE]>);

impl IntoIterator for Segments {
    type Item = Bytes;
    type IntoIter = IntoSegments;

    fn into_iter(mut self) -> IntoSegments {
        if self.head > 0 {
            self.close_gap();
        }
        IntoSegments(self.entries.into_iter())
    }
}

impl Iterator for IntoSegments {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.0.next().map(|entry| entry.bytes)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl DoubleEndedIterator for IntoSegments {
    fn next_back(&mut self) -> Option<Bytes> {
        self.0.next_back().map(|entry| entry.bytes)
    }
}

impl ExactSizeIterator for IntoSegments {}
