//! `compio-buf`: memory that a completion-based runtime owns while the kernel reads or writes it.
#![allow(unsafe_code)] // the traits report how many bytes the kernel has written

use std::borrow::Borrow;
use std::fmt;
use std::io;
use std::iter;
use std::mem::MaybeUninit;

use compio_buf::{IoBuf, IoBufMut, IoVectoredBuf, IoVectoredBufMut, SetLen};

use crate::rope::{Cursor, Extent, Rope};
use crate::view::View;

/// Fewest bytes that are lent when more are wanted, unless memory is short.
const MIN_LENT: usize = 4096;

/// Implements gather writes. Bytes that were sent stay in the rope: [`Rope::advance`] by the count.
///
/// The kernel accepts at most 1 024 segments in one call and refuses more: [`split_to`](Rope::split_to) such a rope.
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

/// Implements gather writes that do not change the rope: [`Cursor::advance`] by the count.
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
    /// Lends memory behind the rope to one completion-based read of up to `want` bytes. When the read is done,
    /// [`take_back`](Rope::take_back) appends its bytes as one segment.
    ///
    /// The rope keeps its bytes, so a cancelled read loses only the bytes that it read. The memory counts as in use
    /// until it is taken back or dropped, because the kernel may write to it at any time.
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
        self.deliver_all()?;
        let allowed = self.allowed();
        if allowed == 0 {
            return Err(self.limit_reached());
        }
        let want = want.clamp(1, allowed);
        let mut room = self.take_tail(want, MIN_LENT)?;
        let lent = room.spare_mut().len().min(want);
        Ok(Lent { room, filled: 0, lent })
    }

    /// Appends the bytes that were read into `lent`, without a copy.
    ///
    /// `lent` may come from any rope; its bytes are appended to this one.
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
        // SAFETY: the caller of `set_len` promised that so many bytes are initialised.
        unsafe { lent.room.fill(lent.filled) };
        self.replace_tail(lent.room);
        self.cut_segments();
        self.release_spare();
    }
}

/// Memory behind a rope that a read owns while the kernel fills it; see [`Rope::lend`].
///
/// Dropping it instead of taking it back frees the memory and loses the bytes that were read into it.
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
    /// Bytes that were read, `0..=lent`.
    filled: usize,
    /// Bytes of the memory that the read may write.
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
