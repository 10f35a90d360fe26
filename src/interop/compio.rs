//! `compio-buf`: memory that a completion-based runtime owns while the kernel reads or fills it.
#![allow(unsafe_code)] // the traits count on what the kernel has written

use std::borrow::Borrow;
use std::fmt;
use std::io;
use std::iter;
use std::mem::MaybeUninit;

use compio_buf::{IoBuf, IoBufMut, IoVectoredBuf, IoVectoredBufMut, SetLen};

use crate::rope::{Cursor, Extent, Rope};
use crate::view::View;

/// Fewest bytes that are lent where more are wanted, unless memory is short.
const MIN_LENT: usize = 4096;

/// For gather writes. What was sent does not leave the rope by itself: [`Rope::advance`] by the count.
///
/// The kernel takes at most 1 024 segments in one call, and a runtime that passes on all there are is
/// refused beyond that: [`split`](Rope::split_to) such a rope.
///
/// # Examples
///
/// ```
/// use compio_buf::IoVectoredBuf;
/// use ropewalk::Rope;
///
/// let mut rope: Rope = [vec![1; 600], vec![2; 600]].into_iter().collect();
/// assert_eq!((rope.iter_slice().count(), rope.total_len()), (2, 1200));
/// rope.advance(700); // the runtime said that 700 bytes were sent
/// assert_eq!(rope.total_len(), 500);
/// ```
impl IoVectoredBuf for Rope {
    fn iter_slice(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks()
    }

    fn total_len(&self) -> usize {
        self.len()
    }
}

/// For gather writes that leave the rope as it is: [`Cursor::advance`] by the count.
impl<R: Borrow<Rope> + 'static> IoVectoredBuf for Cursor<R> {
    fn iter_slice(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks()
    }

    fn total_len(&self) -> usize {
        self.remaining()
    }
}

impl IoBuf for View {
    fn as_init(&self) -> &[u8] {
        self
    }
}

impl Rope {
    /// Lends the room behind the rope to one completion-based read, of up to `want` bytes. When it is
    /// done, [`take_back`](Rope::take_back) appends what was read, as one segment.
    ///
    /// The rope's own bytes stay where they are, so a read that is cancelled costs nothing but what it
    /// read. Until the room is back or dropped all of it is in use: the kernel may write there at any
    /// time.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`](io::ErrorKind::OutOfMemory) when the pool is at its capacity or the system has no
    /// memory, [`QuotaExceeded`](io::ErrorKind::QuotaExceeded) when the rope is at its
    /// [limit](Rope::set_limit).
    ///
    /// # Examples
    ///
    /// ```
    /// use compio_buf::IoBufMut;
    /// use ropewalk::Rope;
    ///
    /// let mut rope = Rope::from("before, ");
    /// let mut lent = rope.lend(4096)?;
    /// // What a runtime does with the memory that it was given:
    /// lent.extend_from_slice(b"behind")?;
    /// rope.take_back(lent);
    /// assert_eq!(rope, b"before, behind");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn lend(&mut self, want: usize) -> io::Result<Lent> {
        self.deliver_held_back(usize::MAX).transpose()?;
        let allowed = self.allowed();
        if allowed == 0 {
            return Err(self.limit_reached());
        }
        let want = want.clamp(1, allowed);
        let mut room = self.take_tail(want, MIN_LENT)?;
        let lent = room.spare_mut().len().min(want);
        Ok(Lent { room, filled: 0, lent })
    }

    /// Appends what was read into `lent`. No copy.
    ///
    /// `lent` may come from any rope: its bytes go to the end of this one.
    ///
    /// # Examples
    ///
    /// ```
    /// use compio_buf::IoBufMut;
    /// use ropewalk::Rope;
    ///
    /// let mut rope = Rope::new();
    /// let mut lent = rope.lend(4096)?;
    /// lent.extend_from_slice(b"what a runtime read")?;
    /// rope.take_back(lent);
    /// assert_eq!(rope.len(), 19);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn take_back(&mut self, mut lent: Lent) {
        // SAFETY: whoever called `set_len` has promised that so many bytes were written.
        unsafe { lent.room.fill(lent.filled) };
        self.replace_tail(lent.room);
        self.cut_segments();
        self.release_spare();
    }
}

/// Room behind a rope that a read owns while the kernel fills it; see [`Rope::lend`].
///
/// Dropped instead of taken back, its memory is the pool's again, and what was read into it is gone.
///
/// # Examples
///
/// ```
/// use compio_buf::{IoBuf, IoBufMut};
/// use ropewalk::Rope;
///
/// let mut rope = Rope::new();
/// let mut lent = rope.lend(100)?;
/// assert_eq!((lent.buf_len(), lent.buf_capacity()), (0, 100)); // nothing read yet, of 100 at the most
/// lent.extend_from_slice(b"abc")?; // as a runtime would
/// assert_eq!(lent.as_init(), b"abc");
/// drop(lent);
/// assert!(rope.is_empty());
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Lent {
    room: Extent,
    /// Bytes that were written, from the start on. `filled <= lent`.
    filled: usize,
    /// Bytes at the start of the room that may be written.
    lent: usize,
}

impl IoBuf for Lent {
    fn as_init(&self) -> &[u8] {
        // SAFETY: as in `take_back`.
        unsafe { self.room.written(self.filled) }
    }
}

impl IoBufMut for Lent {
    fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
        &mut self.room.spare_mut()[..self.lent]
    }
}

impl SetLen for Lent {
    unsafe fn set_len(&mut self, len: usize) {
        assert!(len <= self.lent, "set_len: {len} is beyond the {} bytes that were lent", self.lent);
        self.filled = len;
    }
}

impl IoVectoredBuf for Lent {
    fn iter_slice(&self) -> impl Iterator<Item = &[u8]> {
        iter::once(self.as_init())
    }
}

impl IoVectoredBufMut for Lent {
    fn iter_uninit_slice(&mut self) -> impl Iterator<Item = &mut [MaybeUninit<u8>]> {
        iter::once(self.as_uninit())
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").field("filled", &self.filled).field("lent", &self.lent).finish()
    }
}
