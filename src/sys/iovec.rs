//! The arithmetic of one vectored call. Pure: no I/O.
//!
//! On 32-bit targets: an offset lies inside one segment, so it is at most `isize::MAX`, and a call names at most
//! [`MAX_BYTES`], so the sum of both fits a `usize`. A position is below [`usize::MAX`], since a rope refuses a segment
//! that would make it longer; the end of what a call names, which may be beyond, is computed with saturation. File
//! positions are 64-bit on all targets.

use std::io::IoSlice;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use nix::libc;
use smallvec::SmallVec;

/// Most iovecs in one call: `IOV_MAX`, readv(2).
pub(crate) const MAX_IOVECS: usize = 1024;

/// Most bytes that one call moves: `MAX_RW_COUNT`, write(2) under NOTES.
pub(crate) const MAX_BYTES: usize = 0x7fff_f000;

/// Writable memory for one `readv`: an iovec whose bytes may be uninitialised.
#[repr(transparent)]
pub(crate) struct UninitIovec<'a> {
    iovec: libc::iovec,
    memory: PhantomData<&'a mut [MaybeUninit<u8>]>,
}

impl<'a> UninitIovec<'a> {
    /// The first `max` bytes of `memory`.
    #[inline]
    pub(crate) fn new(memory: &'a mut [MaybeUninit<u8>], max: usize) -> UninitIovec<'a> {
        let iovec = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len().min(max) };
        UninitIovec { iovec, memory: PhantomData }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.iovec.iov_len
    }

    /// The memory, for a reader that is not the kernel.
    #[cfg(feature = "tokio")]
    #[allow(unsafe_code)] // a slice again
    pub(crate) fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: `new` made the iovec of such a slice, or of its start, which is borrowed for as long as this exists.
        unsafe { std::slice::from_raw_parts_mut(self.iovec.iov_base.cast(), self.iovec.iov_len) }
    }

    /// Where the kernel will write.
    #[inline]
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.iovec.iov_base.cast()
    }
}

/// Returns how many bytes these iovecs offer, at most [`usize::MAX`].
#[inline]
pub(crate) fn offered(iovecs: &[UninitIovec<'_>]) -> usize {
    iovecs.iter().fold(0, |sum, iovec| sum.saturating_add(iovec.len()))
}

/// The iovecs of one send, on the stack, and how many bytes they hold.
#[derive(Default)]
pub(crate) struct Iovecs<'a> {
    slices: SmallVec<[IoSlice<'a>; MAX_IOVECS]>,
    held: usize,
}

impl<'a> Iovecs<'a> {
    /// Appends iovecs for `bytes` bytes, those that are skipped not counted.
    #[inline]
    pub(crate) fn extend(&mut self, slices: impl Iterator<Item = IoSlice<'a>>, bytes: usize) {
        self.slices.extend(slices);
        self.held += bytes;
    }

    /// Shortens the first iovec by `count` bytes, of which it has more.
    #[inline]
    pub(crate) fn skip(&mut self, count: usize) {
        if let (true, Some(first)) = (count > 0, self.slices.first_mut()) {
            first.advance(count);
        }
    }

    /// Returns the iovecs before the first of which `len` tells less than it has, and so much of that one.
    pub(crate) fn until(&self, len: impl Fn(&[u8]) -> usize) -> Iovecs<'_> {
        let mut some = Iovecs::default();
        for slice in &self.slices {
            let kept = len(slice);
            let part = (kept > 0).then(|| IoSlice::new(&slice[..kept]));
            some.extend(part.into_iter(), kept);
            if kept < slice.len() {
                break;
            }
        }
        some
    }

    pub(crate) fn clear(&mut self) {
        self.slices.clear();
        self.held = 0;
    }

    #[inline]
    pub(crate) fn slices(&self) -> &[IoSlice<'a>] {
        &self.slices
    }

    #[inline]
    pub(crate) fn held(&self) -> usize {
        self.held
    }
}
