//! A position in a rope, outside of it.

use std::borrow::Borrow;
use std::fmt;

use super::{Pace, Rope};
use crate::sys::iovec::Iovecs;

/// A position in a rope that moves without changing it: to send it again, or to many at a time.
///
/// `R` is anything that lends a rope: `&Rope`, `Rope` or `Arc<Rope>`. Beside its own methods a cursor is
/// [`io::Read`](std::io::Read), [`io::BufRead`](std::io::BufRead), [`io::Seek`](std::io::Seek) and
/// [`Buf`](bytes::Buf), and has the asynchronous ones of tokio and `futures-io` with those features. Moving on is amortised O(1), going elsewhere O(log n) in the number of segments.
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
    /// Bytes before the cursor; never beyond the rope.
    position: usize,
    /// The piece that holds the byte at `position`; beyond the last piece at the end.
    index: usize,
    /// How far into that piece.
    offset: usize,
    sends: Pace,
}

impl<R: Borrow<Rope>> Cursor<R> {
    /// A cursor at the first byte.
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

    /// Bytes before the cursor. O(1).
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

    /// Moves to `position`. O(log n) in the number of segments.
    ///
    /// # Panics
    ///
    /// If `position` is beyond the rope. To seek as in a file, use [`io::Seek`](std::io::Seek).
    ///
    /// # Examples
    ///
    /// ```
    /// let rope = ropewalk::Rope::from("0123456789");
    /// let mut cursor = rope.cursor();
    /// cursor.set_position(8);
    /// assert_eq!(cursor.chunk(), b"89");
    /// cursor.set_position(0); // and all over again
    /// ```
    #[track_caller]
    pub fn set_position(&mut self, position: usize) {
        let rope = self.rope();
        rope.check("set_position", position);
        let index = rope.segments.index_of(position);
        let offset = position - rope.segments.start_of(index);
        (self.position, self.index, self.offset) = (position, index, offset);
    }

    /// Bytes from the cursor on. O(1).
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

    /// Moves `count` bytes on. Amortised O(1) in the number of segments.
    ///
    /// # Panics
    ///
    /// If fewer remain.
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

    /// The bytes from the cursor to the end of its segment; empty at the end of the rope.
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

    /// The bytes from the cursor on as borrowed slices, none of them empty.
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

    /// The rope that the cursor is in.
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

    /// Gives the rope back.
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

    /// Describes up to `most` bytes from the cursor on.
    pub(crate) fn gather<'a>(&'a self, most: usize, iovecs: &mut Iovecs<'a>) {
        self.rope().gather(self.index, self.offset, most, iovecs);
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
