//! Address space that is filled from its start to its end.
//!
//! ```text
//!   a reservation ─► given back: a hole ─► pages │ zeros │ pages │ pages ►      MAP_FIXED_NOREPLACE
//!                 └► kept ──────────────► pages │ zeros │ pages │ pages ►      MAP_FIXED
//! ```
//!
//! Where nothing is, the kernel has nothing to cut and take away (`docs/design.md`, section 7). But another
//! thread may map something in the hole meanwhile.
#![allow(unsafe_code)] // maps at fixed addresses

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::memory::to_off;
#[cfg(test)]
use super::script::{self, Call};

/// Bytes of a huge page, where a page is 4 KiB.
const HUGE: usize = 2 << 20;

/// A range of addresses, mapped by this and by nobody else. munmap(2) when it goes.
pub(crate) struct Space {
    start: NonNull<u8>,
    /// Bytes from `start` on that were filled.
    filled: usize,
    /// Bytes from `start` on that are mapped: those, or all that was reserved.
    mapped: usize,
}

// SAFETY: addresses, and who may read and write there is the owner's business.
unsafe impl Send for Space {}
// SAFETY: as above.
unsafe impl Sync for Space {}

impl Space {
    /// mmap(2) of zeros that take memory where they are written, to be replaced by what fills it.
    pub(crate) fn reserve(len: usize) -> io::Result<Space> {
        let start = zeros(None, len, MapFlags::empty())?;
        Ok(Space { start, filled: 0, mapped: len })
    }

    /// Room for `len` bytes where nothing is mapped, or was a moment ago. It leaves the same remainder as `like`
    /// when divided by 2 MiB, so that huge pages of a file at such an offset stay huge.
    pub(crate) fn vacant(len: usize, like: usize) -> io::Result<Space> {
        let reserved = Space::reserve(len + HUGE)?;
        let skip = like.wrapping_sub(reserved.start.as_ptr().addr()) % HUGE;
        // SAFETY: less than `HUGE`, by which the reservation is longer.
        let start = unsafe { reserved.start.add(skip) };
        Ok(Space { start, filled: 0, mapped: 0 })
    }

    /// mmap(2): whole pages of `file`, read only.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if somebody else has mapped something here, and whatever the kernel reports.
    pub(crate) fn push_pages(&mut self, len: usize, file: &File, offset: usize) -> io::Result<()> {
        #[cfg(test)]
        script::refuse(Call::Map)?;
        let (at, fixed) = self.next(len);
        let (size, offset) = (size(len)?, to_off(offset as u64)?);
        // SAFETY: what is replaced, if anything, is zeros that this has reserved and nobody has seen yet.
        let got =
            unsafe { mmap(Some(at), size, ProtFlags::PROT_READ, MapFlags::MAP_SHARED | fixed, file, offset) };
        self.push(got?.cast(), len)
    }

    /// Zeros, which may be written to. Errors as above.
    pub(crate) fn push_zeros(&mut self, len: usize) -> io::Result<()> {
        let (at, fixed) = self.next(len);
        if fixed == MapFlags::MAP_FIXED || len == 0 {
            self.filled += len;
            return Ok(());
        }
        let got = zeros(Some(at), len, fixed)?;
        self.push(got, len)
    }

    /// Where the next `len` bytes go, and how.
    fn next(&self, len: usize) -> (NonZeroUsize, MapFlags) {
        let reserved = self.filled < self.mapped;
        assert!(!reserved || self.filled + len <= self.mapped, "more than was reserved");
        let at = self.start.addr().saturating_add(self.filled);
        (at, if reserved { MapFlags::MAP_FIXED } else { MapFlags::MAP_FIXED_NOREPLACE })
    }

    fn push(&mut self, got: NonNull<u8>, len: usize) -> io::Result<()> {
        if got.addr().get() != self.start.addr().get() + self.filled {
            // A kernel before 4.17, which takes the address for a wish.
            drop(Space { start: got, filled: len, mapped: len });
            return Err(Errno::EEXIST.into());
        }
        self.filled += len;
        self.mapped = self.mapped.max(self.filled);
        Ok(())
    }

    /// The address of a byte that was filled.
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset <= self.filled, "nothing is mapped at {offset}");
        // SAFETY: just checked to be in the range, or one past its end.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if self.mapped > 0 {
            // SAFETY: this has mapped all of it; whoever refers to it has this.
            let _unmapped = unsafe { munmap(self.start.cast::<c_void>(), self.mapped) };
            debug_assert_eq!(_unmapped, Ok(()));
        }
    }
}

fn zeros(at: Option<NonZeroUsize>, len: usize, flags: MapFlags) -> io::Result<NonNull<u8>> {
    #[cfg(test)]
    script::refuse(Call::Zeros)?;
    let flags = flags | MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: without `MAP_FIXED` nothing is replaced.
    Ok(unsafe { mmap_anonymous(at, size(len)?, prot, flags) }?.cast())
}

fn size(len: usize) -> io::Result<NonZeroUsize> {
    NonZeroUsize::new(len).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
