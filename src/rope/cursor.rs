//! A position outside the rope.

use std::borrow::Borrow;
use std::fmt;

use super::{Pace, Rope};
use crate::sys::iovec::Iovecs;

/// A position in a rope that does not change the rope: to send it again, or to several readers.
///
/// `R` is anything that borrows as a rope: `&Rope`, `Rope` or `Arc<Rope>`. A cursor implements
/// [`io::Read`](std::io::Read), [`io::BufRead`](std::io::BufRead), [`io::Seek`](std::io::Seek) and
/// [`Buf`](bytes::Buf), and the asynchronous traits of tokio and `futures-io` with those features. Advancing is
/// amortised O(1), seeking O(log n) in the number of segments.
///
/// # Examples
///
/// ```
/// use ropewalk::{Cursor, Rope};
/// use std::sync::Arc;
///
/// let rope = Arc::new(Rope::from("for everybody"));
/// let mut one = Cursor::new(Arc::clone(&rope));
/// let mut other = Cursor::new(rope);
/// one.set_position(4);
/// assert_eq!((one.remaining(), other.remaining()), (9, 13));
/// # let _ = &mut other;
/// ```
#[derive(Clone)]
pub struct Cursor<R> {
    rope: R,
    /// Bytes before the cursor, `0..=rope.len()`.
    position: usize,
    /// Index of the piece that holds the byte at `position`; of none at the end.
    index: usize,
    /// Bytes of that piece before `position`.
    offset: usize,
    sends: Pace,
}

impl<R: Borrow<Rope>> Cursor<R> {
    /// Creates a cursor at the first byte. O(1).
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Cursor, Rope};
    ///
    /// let rope = Rope::from("shared");
    /// assert_eq!(Cursor::new(&rope).remaining(), 6);
    /// ```
    pub fn new(rope: R) -> Cursor<R> {
        Cursor { rope, position: 0, index: 0, offset: 0, sends: Pace::SENDS }
    }

    /// Returns the number of bytes before the cursor. O(1).
    ///
    /// # Examples
    ///
    /// ```
    /// let rope = ropewalk::Rope::from("0123456789");
    /// let mut cursor = rope.cursor();
    /// cursor.advance(3);
    /// assert_eq!(cursor.position(), 3);
    /// ```
    pub fn position(&self) -> usize {
        self.position
    }

    /// Sets the position. O(log n) in the number of segments.
    ///
    /// # Panics
    ///
    /// If `position` is beyond the end of the rope. To get an error instead, use [`io::Seek`](std::io::Seek).
    ///
    /// # Examples
    ///
    /// ```
    /// let rope = ropewalk::Rope::from("0123456789");
    /// let mut cursor = rope.cursor();
    /// cursor.set_position(8);
    /// assert_eq!(cursor.chunk(), b"89");
    /// cursor.set_position(0); // from the start again
    /// ```
    #[track_caller]
    pub fn set_position(&mut self, position: usize) {
        let rope = self.rope();
        rope.check("set_position", position);
        let index = rope.segments.index_of(position);
        let offset = position - rope.segments.start_of(index);
        (self.position, self.index, self.offset) = (position, index, offset);
    }

    /// Returns the number of bytes from the cursor to the end. O(1).
    ///
    /// # Examples
    ///
    /// ```
    /// let rope = ropewalk::Rope::from("0123456789");
    /// let mut cursor = rope.cursor();
    /// cursor.advance(3);
    /// assert_eq!(cursor.remaining(), 7);
    /// ```
    pub fn remaining(&self) -> usize {
        self.rope().len().saturating_sub(self.position)
    }

    /// Advances by `count` bytes. O(segments passed).
    ///
    /// # Panics
    ///
    /// If fewer than `count` bytes remain.
    ///
    /// # Examples
    ///
    /// ```
    /// let rope = ropewalk::Rope::from("head and body");
    /// let mut cursor = rope.cursor();
    /// cursor.advance(9);
    /// assert_eq!(cursor.chunk(), b"body");
    /// ```
    #[track_caller]
    pub fn advance(&mut self, count: usize) {
        let remaining = self.remaining();
        assert!(count <= remaining, "advance: {count} is beyond the {remaining} bytes that remain");
        let (mut index, mut offset) = (self.index, self.offset + count);
        let rope: &Rope = self.rope.borrow();
        loop {
            let len = rope.piece(index).len();
            if offset < len || len == 0 {
                break;
            }
            offset -= len;
            index += 1;
        }
        (self.position, self.index, self.offset) = (self.position + count, index, offset);
    }

    /// Returns the bytes from the cursor to the end of its segment; empty at the end of the rope. O(1).
    ///
    /// # Examples
    ///
    /// ```
    /// let rope: ropewalk::Rope = ["one", "two"].into_iter().collect();
    /// let mut cursor = rope.cursor();
    /// cursor.advance(1);
    /// assert_eq!(cursor.chunk(), b"ne");
    /// ```
    pub fn chunk(&self) -> &[u8] {
        self.rope().piece(self.index).get(self.offset..).unwrap_or_default()
    }

    /// Returns the bytes from the cursor on as borrowed slices, none of them empty. O(1), and O(1) for each.
    ///
    /// # Examples
    ///
    /// ```
    /// let rope: ropewalk::Rope = ["one", "two"].into_iter().collect();
    /// let mut cursor = rope.cursor();
    /// cursor.advance(1);
    /// assert!(cursor.chunks().eq([&b"ne"[..], b"two"]));
    /// ```
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let first = Some(self.chunk()).filter(|chunk| !chunk.is_empty());
        first.into_iter().chain(self.rope().chunks_from(self.index + 1))
    }

    /// Returns a reference to what the cursor was created with.
    ///
    /// # Examples
    ///
    /// ```
    /// let cursor = ropewalk::Rope::from("0123456789").into_cursor();
    /// assert_eq!(cursor.get_ref().len(), 10);
    /// ```
    pub fn get_ref(&self) -> &R {
        &self.rope
    }

    /// Returns what the cursor was created with.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut cursor = ropewalk::Rope::from("all of it").into_cursor();
    /// cursor.advance(4);
    /// assert_eq!(cursor.into_inner(), b"all of it");
    /// ```
    pub fn into_inner(self) -> R {
        self.rope
    }

    pub(crate) fn rope(&self) -> &Rope {
        self.rope.borrow()
    }

    /// Appends iovecs for up to `max` bytes from the cursor on.
    pub(crate) fn gather<'a>(&'a self, max: usize, iovecs: &mut Iovecs<'a>) {
        self.rope().gather(self.index, self.offset, max, iovecs);
    }

    /// Returns how many bytes the next `count` pieces have, or all that remain if there are fewer. O(1).
    pub(crate) fn bytes_of(&self, count: usize) -> usize {
        let (segments, end) = (&self.rope().segments, self.index + count);
        if end > segments.count() { self.remaining() } else { segments.start_of(end) - self.position }
    }

    pub(crate) fn sends(&mut self) -> &mut Pace {
        &mut self.sends
    }
}

impl<R: Borrow<Rope>> fmt::Debug for Cursor<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").field("position", &self.position).field("rope", self.rope()).finish()
    }
}
