//! The arithmetic of one vectored call. Pure: no I/O.

use std::io::IoSlice;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use nix::libc;

/// Most iovecs in one call: `IOV_MAX`, readv(2). Tiny under test, so that the seam is met all the time.
pub(crate) const MAX_IOVECS: usize = if cfg!(any(test, fuzzing)) { 2 } else { 1024 };

/// Most bytes that one call moves: `MAX_RW_COUNT`, write(2) under NOTES.
pub(crate) const MAX_BYTES: usize = 0x7fff_f000;

/// Writable memory for one `readv`: an iovec whose bytes may be uninitialised.
#[repr(transparent)]
pub(crate) struct Room<'a> {
    iovec: libc::iovec,
    memory: PhantomData<&'a mut [MaybeUninit<u8>]>,
}

impl<'a> Room<'a> {
    /// The first `max` bytes of `memory`.
    #[inline]
    pub(crate) fn new(memory: &'a mut [MaybeUninit<u8>], max: usize) -> Room<'a> {
        let iovec = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len().min(max) };
        Room { iovec, memory: PhantomData }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.iovec.iov_len
    }

    /// Where the kernel will write.
    #[inline]
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.iovec.iov_base.cast()
    }
}

/// How many bytes these rooms offer, at most [`usize::MAX`].
#[inline]
pub(crate) fn offered(rooms: &[Room<'_>]) -> usize {
    rooms.iter().fold(0, |sum, room| sum.saturating_add(room.len()))
}

/// How many bytes these slices hold, at most [`usize::MAX`].
pub(crate) fn held(slices: &[IoSlice<'_>]) -> usize {
    slices.iter().fold(0, |sum, slice| sum.saturating_add(slice.len()))
}
