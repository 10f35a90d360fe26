//! The tail: one extent behind the segments that is being filled.
//!
//! ```text
//!  … [segment][segment] [filled | spare]      copies and reads fill the spare bytes;
//!                        └── tail ──┘         `freeze` turns the filled ones into segments
//! ```

use std::io;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::Rope;
use crate::pool::{Extent, PIECE, Pool};

/// A rope keeps empty pages for this part of what it holds, so that ropes growing beside each other
/// in one pool do not interleave page by page. A rope that holds little keeps none.
const KEEP_PART: usize = 16;

/// Most empty bytes a rope keeps.
const KEEP_MOST: usize = 256 << 10;

/// Smallest tail on the heap.
const HEAP_LEAST: usize = 64;

/// Bytes that are copied rather than kept in a segment of their own, where that makes them part of the
/// tail: about what a segment costs to make, name in an iovec and drop.
pub(crate) const LITTLE: usize = if cfg!(test) { 16 } else { 4096 };

impl Rope {
    /// Makes room for at least `more` bytes behind those that are there, side by side.
    ///
    /// In a pool this takes one run of pages, so a payload of known length that is received into an
    /// empty rope is contiguous from the start and [finalised](Rope::finalize) at no cost. The pages
    /// count as in use at once and stay this rope's until they are filled or the rope is
    /// [cleared](Rope::clear); memory is committed as bytes arrive.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`](io::ErrorKind::OutOfMemory) when the pool has no such run, or the heap no such
    /// memory. The rope is as it was. Where many ropes share a pool that is nearly full, there may be as many
    /// bytes in shorter runs: then receive without a reservation, and keep count of what was promised to whom.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// let pool = Pool::new()?;
    /// let mut rope = Rope::in_pool(&pool);
    /// rope.reserve(10 << 20)?;
    /// rope.extend_from_slice(&[7; 10 << 20]);
    /// assert_eq!(rope.finalize()?.copied_bytes(), 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn reserve(&mut self, more: usize) -> io::Result<()> {
        if more == 0 {
            return Ok(());
        }
        self.absorb_short();
        if let Some(tail) = &mut self.tail {
            if tail.spare() >= more || tail.grow_exact(more - tail.spare()) {
                tail.reserve(more);
                return Ok(());
            }
        }
        // Pages can be mapped behind each other only if the bytes go on where in a page they left off.
        let lead = self.tail.as_ref().map_or(0, Extent::end_in_page);
        let short = if self.has_tail() { None } else { self.short_segment().cloned() }.unwrap_or_default();
        let want = lead + short.len() + more;
        let mut fresh = match &self.pool {
            Some(pool) => Extent::in_pool_exact(pool, want)?,
            None => Extent::on_heap(want, false)?,
        };
        fresh.skip(lead)?;
        fresh.begin_with(&short)?;
        fresh.reserve(more);
        if !short.is_empty() {
            self.drop_short();
        }
        self.replace_tail(fresh);
        Ok(())
    }

    /// Appends a copy of `bytes` to the tail. Consecutive small ones are one segment.
    ///
    /// When the pool has no memory the copy lies on the heap, and [`PoolStats`](crate::PoolStats)
    /// counts a fallback.
    ///
    /// # Panics
    ///
    /// When the heap has no memory either.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::new();
    /// for byte in b"one segment" {
    ///     rope.extend_from_slice(&[*byte]);
    /// }
    /// assert_eq!((rope.len(), rope.num_segments()), (11, 1));
    /// ```
    #[inline]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        if !self.copy_in_place(bytes) {
            self.copy_in_or_to_heap(bytes);
        }
    }

    /// Copies to where there is room ready, if that is all it takes.
    #[inline]
    fn copy_in_place(&mut self, bytes: &[u8]) -> bool {
        let Some(tail) = &mut self.tail else { return false };
        // An empty tail may have to begin with something else, and a full piece has to be cut off.
        let simple = tail.len() > 0 && bytes.len() <= tail.ready() && tail.len() + bytes.len() <= PIECE;
        simple && tail.copy_from(bytes) == bytes.len()
    }

    fn copy_in_or_to_heap(&mut self, bytes: &[u8]) {
        let mut left = bytes;
        while let Err(not_copied) = self.copy_in(left) {
            left = &left[left.len() - not_copied.bytes..];
            self.make_room_on_heap(left.len());
        }
    }

    /// Copies into the tail; on an error, what came before it is in the rope.
    pub(crate) fn copy_in(&mut self, bytes: &[u8]) -> Result<(), NotCopied> {
        let mut left = bytes;
        self.absorb_short();
        while !left.is_empty() {
            let room = self.make_room(left.len());
            let copied = room.map_err(|error| NotCopied { bytes: left.len(), error })?.copy_from(left);
            left = &left[copied..];
            self.cut_pieces();
        }
        Ok(())
    }

    /// A tail with committed room for `want` bytes, or for fewer but at least one.
    pub(crate) fn make_room(&mut self, want: usize) -> io::Result<&mut Extent> {
        let spare = self.tail.as_ref().map_or(0, Extent::spare);
        let grown = spare < want.min(HEAP_LEAST) && self.grow_tail(want);
        if spare == 0 && !grown {
            let fresh = self.new_extent(self.generous(want))?;
            self.replace_tail(fresh);
        }
        let tail = self.tail.as_mut().expect("it was there with spare room, or was made just now");
        tail.commit(want.min(PIECE))?;
        Ok(tail)
    }

    /// For callers that cannot be told of an error: a tail on the heap.
    ///
    /// # Panics
    ///
    /// When the heap has no memory either.
    pub(crate) fn make_room_on_heap(&mut self, want: usize) -> &mut Extent {
        let fresh = Extent::on_heap(self.generous(want).min(PIECE), self.zeroes());
        if let Some(pool) = &self.pool {
            pool.count_fallback();
        }
        self.replace_tail(fresh.unwrap_or_else(|error| panic!("{error}")));
        self.tail.as_mut().expect("made just now")
    }

    /// Whether nothing that this rope held may stay in memory.
    #[inline]
    pub(crate) fn zeroes(&self) -> bool {
        self.pool.as_ref().is_some_and(Pool::zeroes)
    }

    /// Memory of the heap as a segment of this rope.
    #[inline]
    pub(crate) fn own(&self, memory: Box<[u8]>) -> Bytes {
        if self.zeroes() { Bytes::from_owner(Zeroizing::new(memory)) } else { memory.into() }
    }

    fn grow_tail(&mut self, want: usize) -> bool {
        let generous = self.generous(want);
        self.tail.as_mut().is_some_and(|tail| tail.grow(generous))
    }

    /// Copied pieces come one by one and tell nothing of the whole, so the tail grows with the rope.
    fn generous(&self, want: usize) -> usize {
        want.max(self.len().clamp(HEAP_LEAST, KEEP_MOST))
    }

    /// A fresh extent of this rope's kind of memory.
    #[inline]
    pub(crate) fn new_extent(&self, want: usize) -> io::Result<Extent> {
        match &self.pool {
            Some(pool) => Extent::in_pool(pool, want, self.len()),
            None => Extent::on_heap(want.min(PIECE), false),
        }
    }

    /// The tail as it is, for reading into.
    #[inline]
    pub(crate) fn tail_mut(&mut self) -> Option<&mut Extent> {
        self.tail.as_mut()
    }

    /// Bytes that can be received without taking more memory.
    #[cfg(feature = "tokio")]
    pub(crate) fn spare(&self) -> usize {
        self.tail.as_ref().map_or(0, Extent::spare)
    }

    /// Takes the room behind the bytes away, committed for `want` bytes or for fewer, but for
    /// fewer than `least` only where memory is short: a tail that cannot grow that far is replaced.
    #[cfg(feature = "compio")]
    pub(crate) fn take_tail(&mut self, want: usize, least: usize) -> io::Result<Extent> {
        let least = want.min(least);
        let enough = |tail: &mut Extent| tail.spare() >= least || (tail.grow(want) && tail.spare() >= least);
        if self.tail.as_mut().is_some_and(|tail| !enough(tail)) {
            if let Ok(fresh) = self.new_extent(self.generous(want)) {
                self.replace_tail(fresh);
            }
        }
        self.make_room(want)?;
        self.freeze();
        Ok(self.tail.take().expect("room was made in it"))
    }

    #[inline]
    pub(crate) fn tail_len(&self) -> usize {
        self.tail.as_ref().map_or(0, Extent::len)
    }

    /// The bytes of the tail, if it has any.
    #[inline]
    pub(crate) fn filled_tail(&self) -> Option<&[u8]> {
        self.tail.as_ref().map(Extent::filled).filter(|tail| !tail.is_empty())
    }

    /// Lets `fresh` be filled next. What the tail held becomes segments; its spare pages go back.
    #[inline]
    pub(crate) fn replace_tail(&mut self, fresh: Extent) {
        if self.tail.is_some() {
            return self.finish_and_begin(fresh);
        }
        self.tail = Some(fresh);
    }

    #[inline(never)]
    fn finish_and_begin(&mut self, fresh: Extent) {
        self.finish();
        self.tail = Some(fresh);
    }

    /// Whether there is memory to be filled next.
    #[inline]
    pub(crate) fn has_tail(&self) -> bool {
        self.tail.is_some()
    }

    /// The last segment, if it is short and the next tail had better begin with a copy of it, so that
    /// they are side by side: a small first read, or a header that was pushed in front of a body.
    #[inline]
    pub(crate) fn short_segment(&self) -> Option<&Bytes> {
        let last = self.segments.last().filter(|last| last.len() <= LITTLE)?;
        match &self.tail {
            None => Some(last),
            Some(tail) => Some(last).filter(|last| tail.len() == 0 && !tail.follows(last)),
        }
    }

    /// Copies a short last segment into the tail, if that has nothing in it yet and room for more: a tail
    /// that this would fill has to be followed by another, and the segment would be last again.
    #[inline]
    pub(crate) fn absorb_short(&mut self) {
        if self.tail.as_ref().is_some_and(|tail| tail.len() == 0) {
            self.absorb_short_into_tail();
        }
    }

    fn absorb_short_into_tail(&mut self) {
        let Some(short) = self.short_segment().cloned() else { return };
        if let Some(tail) = self.tail.as_mut().filter(|tail| tail.ready() > short.len()) {
            tail.copy_from(&short);
            self.drop_short();
        }
    }

    /// Drops the last segment, whose bytes the tail begins with.
    pub(crate) fn drop_short(&mut self) {
        self.segments.pop();
    }

    /// Turns the tail's bytes into segments. The room behind them stays the tail.
    pub(crate) fn freeze(&mut self) {
        self.cut_pieces();
        let Some(tail) = &mut self.tail else { return };
        if tail.len() > 0 {
            self.segments.push(tail.split_to(tail.len()));
        }
        if tail.spare() == 0 {
            self.tail = None;
        }
    }

    /// Turns the tail's bytes into segments. The room behind them goes back.
    #[inline]
    pub(crate) fn finish(&mut self) {
        if self.tail.is_some() {
            self.cut_pieces();
        }
        if let Some(tail) = self.tail.take().filter(|tail| tail.len() > 0) {
            self.segments.push(tail.into_bytes());
        }
    }

    /// Turns full pieces of the tail into segments, so that none pins more than `PIECE` bytes.
    #[inline]
    pub(crate) fn cut_pieces(&mut self) {
        let Some(tail) = &mut self.tail else { return };
        // A tail that is full can still grow, so the last piece stays in it.
        while tail.len() > PIECE {
            self.segments.push(tail.split_to(PIECE));
        }
    }

    /// Gives the tail's pages that have no memory back, unless they are reserved; returns whether it did.
    pub(crate) fn give_back_cold(&mut self) -> bool {
        let given = self.tail.as_mut().is_some_and(Extent::give_back_cold);
        self.cut_pieces();
        given
    }

    /// Gives empty pages back, all of them if the rope is empty, but none that are reserved.
    #[inline]
    pub(crate) fn give_back_spare(&mut self) {
        let keep = (self.len() / KEEP_PART).min(KEEP_MOST);
        let Some(tail) = &mut self.tail else { return };
        if tail.len() == 0 && keep.max(tail.reserved()) == 0 {
            self.tail = None;
        } else {
            tail.give_back(keep);
        }
    }
}

/// Why the last bytes of a copy are not in the rope.
pub(crate) struct NotCopied {
    /// How many are missing.
    pub(crate) bytes: usize,
    pub(crate) error: io::Error,
}
