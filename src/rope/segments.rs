//! The segments of a rope, in order, with the position of each.
//!
//! ```text
//! entries  [ ·  |  ·  | seg | seg | seg ]        · gap: taken off the front, or kept for `push_front`
//!                     ^head
//! ends      .     .     e0    e1    e2           segment i ends at position e_i - start
//! ```
//!
//! Positions are differences to `start`. `start` and the ends wrap, so the front can move both ways, and nothing is
//! renumbered when bytes leave or arrive there.

use std::mem;

use bytes::{Buf, Bytes};
use smallvec::{CollectionAllocErr, SmallVec};

/// Segments stored inside the rope, without an allocation.
const INLINE: usize = 2;

/// Fewest entries of a table that grows with a gap in front.
const LARGE: usize = 64;

/// Fewest entries of a table that shrinks: 640 KiB.
const SHRINK: usize = 16 << 10;

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
    /// Where the first segment starts: position 0.
    start: usize,
    /// Where the last segment ends.
    end: usize,
}

/// Most entries that are allocated before there are segments for them: 2.5 MiB.
const MAX_HINT: usize = 1 << 16;

impl Segments {
    /// One segment, which is not empty.
    #[inline]
    pub(crate) fn of(bytes: Bytes) -> Segments {
        let end = bytes.len();
        let entries = SmallVec::from_buf_and_len([Entry { end, bytes }, Entry::EMPTY], 1);
        Segments { entries, head: 0, start: 0, end }
    }

    /// Returns the number of bytes in all segments. O(1).
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.end.wrapping_sub(self.start)
    }

    /// Returns the number of segments. O(1).
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

    /// Returns the segments from `index` on, none if there are fewer. O(1).
    pub(crate) fn iter_from(
        &self,
        index: usize,
    ) -> impl DoubleEndedIterator<Item = &Bytes> + ExactSizeIterator + Clone {
        self.live().get(index..).unwrap_or_default().iter().map(|entry| &entry.bytes)
    }

    /// Returns the position at which segment `index` starts. O(1).
    #[inline]
    pub(crate) fn start_of(&self, index: usize) -> usize {
        match index.checked_sub(1).and_then(|before| self.live().get(before)) {
            Some(before) => before.end.wrapping_sub(self.start),
            None => 0,
        }
    }

    /// Returns the index of the segment that holds the byte at `position`, `count()` if none does. O(log n).
    #[inline]
    pub(crate) fn index_of(&self, position: usize) -> usize {
        self.live().partition_point(|entry| entry.end.wrapping_sub(self.start) <= position)
    }

    /// Returns how many of the `count` segments from `index` on end at `position` or before. O(log count).
    #[inline]
    pub(crate) fn ending_within(&self, index: usize, count: usize, position: usize) -> usize {
        let some = self.live().get(index..).unwrap_or_default();
        let some = &some[..some.len().min(count)];
        some.partition_point(|entry| entry.end.wrapping_sub(self.start) <= position)
    }

    /// Appends a segment, unless it is empty. Amortised O(1).
    ///
    /// # Panics
    ///
    /// If there would be more than [`usize::MAX`] bytes, which takes segments that share memory.
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

    /// Allocates entries for `hint` more segments, and in a large table some in front of them. Not for more than
    /// [`MAX_HINT`]: the hint of an iterator may be anything.
    pub(crate) fn reserve(&mut self, hint: usize) {
        let count = hint.min(MAX_HINT);
        if self.entries.is_empty() && count >= LARGE {
            self.entries = with_gap(count / 8, 0, count);
            self.head = count / 8;
        } else {
            self.entries.reserve(count);
        }
    }

    /// Returns how many more bytes can be counted. O(1).
    #[inline]
    pub(crate) fn left(&self) -> usize {
        usize::MAX - self.len()
    }

    /// Allocates entries for `more` segments behind those that are there, which pushing then does not.
    pub(crate) fn try_reserve(&mut self, more: usize) -> Result<(), CollectionAllocErr> {
        if self.entries.capacity() - self.entries.len() >= more {
            return Ok(());
        }
        if self.head > 0 && self.head >= self.entries.len().div_ceil(2) {
            self.close_gap();
        }
        self.entries.try_reserve(more)
    }

    #[inline]
    #[track_caller]
    fn check_more(&self, more: usize) {
        let len = self.len();
        assert!(len.checked_add(more).is_some(), "{len} and {more} bytes are more than a rope can hold");
    }

    /// Prepends a segment, unless it is empty. Amortised O(1): when the gap in front is used up, the table is copied
    /// and gets one as large as itself.
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

    /// Removes and returns the first segment. Amortised O(1).
    #[inline]
    pub(crate) fn pop_front(&mut self) -> Option<Bytes> {
        let first = self.entries.get_mut(self.head)?;
        let bytes = mem::take(&mut first.bytes);
        self.start = first.end;
        self.head += 1;
        self.forget_taken();
        Some(bytes)
    }

    /// Removes and returns the only segment, an empty one if there is none; `None` if there are more.
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

    /// Removes and returns the last segment.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let last = if self.head < self.entries.len() { self.entries.pop() } else { None }?.bytes;
        self.end = self.end.wrapping_sub(last.len());
        self.forget_taken();
        Some(last)
    }

    /// Keeps the first `len` bytes, `0..=len()`. O(segments dropped), without an allocation.
    pub(crate) fn truncate(&mut self, len: usize) {
        while self.len() > len {
            let Some(mut last) = self.pop() else { return };
            if self.len() < len {
                last.truncate(len - self.len());
                self.push(last);
            }
        }
    }

    /// Drops the first `count` bytes, `0..=len()`. O(segments dropped).
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
            // Dropped at the end of the iteration, when the table is consistent: an owner's drop may panic.
            let _dropped = mem::take(&mut first.bytes);
            self.start = first.end;
            self.head += 1;
        }
        self.forget_taken();
    }

    /// Removes and returns the `len` bytes behind the first `skip`, which are dropped, if all of these lie in the first segment and `len`
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

    /// Removes and returns the first `at` bytes. O(log n + segments on the smaller side).
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

    /// Removes and returns the bytes from position `at` on. O(log n + segments removed).
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

    /// Appends all segments of `other`. Amortised O(segments of the shorter one).
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

    /// Returns the bytes of `from..to`, sharing their memory. O(log n + segments in the range).
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

    /// Drops the gap in front if no segment is left, and shrinks a table that is much too large.
    #[inline]
    fn forget_taken(&mut self) {
        if self.head == self.entries.len() && self.head > 0 {
            self.entries.clear();
            self.head = 0;
        }
        if self.entries.capacity() >= SHRINK {
            self.shrink();
        }
    }

    /// Copies a table of which less than an eighth is used. Amortised: more segments were removed before.
    #[cold]
    fn shrink(&mut self) {
        if self.count() < self.entries.capacity() / 8 {
            let live = self.entries.drain(self.head..).collect::<SmallVec<_>>();
            (self.entries, self.head) = (live, 0);
        }
    }

    /// Makes space for another entry: in the gap if that is half of the table, else in a larger table that keeps a gap.
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

/// Returns a table of `gap` empty entries, with capacity for `live` behind them and `spare` more.
fn with_gap(gap: usize, live: usize, spare: usize) -> SmallVec<[Entry; INLINE]> {
    let mut entries = SmallVec::with_capacity(gap + live + spare);
    entries.resize(gap, Entry::EMPTY);
    entries
}

/// Clones entries, which share their bytes. Many are cloned faster into a vector.
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

/// Yields the segments in order.
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
