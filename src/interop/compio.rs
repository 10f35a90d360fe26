//! `compio-buf`: memory that a completion-based runtime owns while the kernel reads or fills it.
#![allow(unsafe_code)] // the traits count on what the kernel has written

use std::borrow::Borrow;
use std::fmt;
use std::io;
use std::iter;
use std::mem::MaybeUninit;

use compio_buf::{IoBuf, IoBufMut, IoVectoredBuf, IoVectoredBufMut, SetLen};

use crate::pool::Extent;
use crate::recv::LimitReached;
use crate::rope::{Cursor, Rope};
use crate::view::View;

/// For gather writes. What was sent does not leave the rope by itself: [`Rope::advance`] by the count.
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
    /// Lends the room behind the rope to one completion-based read, of up to `want` bytes. The rope
    /// goes with it, and comes back with what was read by [`Filling::into_rope`]. Until then the whole
    /// room is in use, whatever comes: the kernel may write into it at any time.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`](io::ErrorKind::OutOfMemory) when the pool is at its capacity or the system has no
    /// memory, [`QuotaExceeded`](io::ErrorKind::QuotaExceeded) when the rope is at its
    /// [limit](Rope::set_limit). The rope comes back beside the error.
    ///
    /// # Examples
    ///
    /// ```
    /// use compio_buf::{IoBufMut, SetLen};
    /// use ropewalk::Rope;
    ///
    /// let mut filling = Rope::from("before, ").filling(4096).map_err(|(_, error)| error)?;
    /// // What a runtime does with the memory that it was given:
    /// filling.extend_from_slice(b"behind")?;
    /// assert_eq!(filling.into_rope(), b"before, behind");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn filling(mut self, want: usize) -> Result<Filling, (Rope, io::Error)> {
        let want = want.min(self.limit().saturating_sub(self.len()));
        if want == 0 {
            let error = LimitReached(self.limit()).into();
            return Err((self, error));
        }
        match self.make_room(want).map(|tail| tail.spare_mut().len()) {
            Ok(room) => Ok(Filling { rope: self, filled: 0, room: room.min(want) }),
            Err(error) => Err((self, error)),
        }
    }
}

/// A rope while the room behind it is being filled; see [`Rope::filling`].
///
/// To the runtime it is that room alone, empty at first: a read can neither see nor overwrite what is
/// in the rope.
pub struct Filling {
    rope: Rope,
    /// Bytes of the room that were written, from its start on. `filled <= room`.
    filled: usize,
    /// Bytes at the start of the tail's spare memory that are lent. Not changed while this lives.
    room: usize,
}

impl Filling {
    /// The rope, with what was read at its end.
    pub fn into_rope(mut self) -> Rope {
        if let Some(tail) = self.rope.tail_mut() {
            // SAFETY: whoever called `set_len` has promised that so many bytes were written.
            unsafe { tail.fill(self.filled) };
        }
        self.rope.cut_pieces();
        self.rope.give_back_spare();
        self.rope
    }

    fn filled(&self) -> &[u8] {
        // SAFETY: as in `into_rope`; nothing has moved the start of the spare memory since.
        self.rope.tail().map_or(&[], |tail| unsafe { tail.written(self.filled) })
    }

    fn room(&mut self) -> &mut [MaybeUninit<u8>] {
        let spare = self.rope.tail_mut().map_or(&mut [][..], Extent::spare_mut);
        &mut spare[..self.room]
    }
}

impl IoBuf for Filling {
    fn as_init(&self) -> &[u8] {
        self.filled()
    }
}

impl IoBufMut for Filling {
    fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
        self.room()
    }
}

impl SetLen for Filling {
    unsafe fn set_len(&mut self, len: usize) {
        assert!(len <= self.room, "set_len: {len} is beyond the {} bytes that were lent", self.room);
        self.filled = len;
    }
}

impl IoVectoredBuf for Filling {
    fn iter_slice(&self) -> impl Iterator<Item = &[u8]> {
        iter::once(self.filled())
    }
}

impl IoVectoredBufMut for Filling {
    fn iter_uninit_slice(&mut self) -> impl Iterator<Item = &mut [MaybeUninit<u8>]> {
        iter::once(self.room())
    }
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling")
            .field("rope", &self.rope)
            .field("filled", &self.filled)
            .field("room", &self.room)
            .finish()
    }
}
