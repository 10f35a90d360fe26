//! Address space that is filled from its start to its end.
//!
//! ```text
//!   a reservation ─► given back: a hole ─► pages │ zeros │ moved │ pages ►      MAP_FIXED_NOREPLACE
//!                 └► kept ──────────────► pages │ zeros │ pages │ pages ►      MAP_FIXED
//! ```
//!
//! Where nothing is, the kernel has nothing to cut and take away (`docs/design.md`, section 7). But another
//! thread may map something in the hole meanwhile.
//!
//! Pages that are mapped elsewhere can be *moved* here with their entries in the page tables, so that reading
//! them takes no fault. Where they were, the map stays, without entries; in the end they go back there.
#![allow(unsafe_code)] // maps at fixed addresses

use std::fs::File;
use std::io;
use std::mem;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc::{SYS_mremap, c_long, syscall};
use nix::sys::mman::{
    MRemapFlags, MapFlags, MmapAdvise, MsFlags, ProtFlags, madvise, mmap, mmap_anonymous, msync, munmap,
};

use super::memory::{TABLE, to_off};
#[cfg(test)]
use super::mock::{self, Call};
use super::pressure;
use super::process::Process;

/// What the kernel may need to describe a map and for its page tables.
const DESCRIBED: usize = 8 << 10;

/// A range of addresses, mapped by this and by nobody else. munmap(2) when it goes.
pub(crate) struct Space {
    /// Whose pages are mapped.
    file: Arc<File>,
    start: NonNull<u8>,
    /// Bytes from `start` on that were filled.
    filled: usize,
    /// Bytes from `start` on that are mapped: those, or all that was reserved.
    mapped: usize,
    /// In ascending order.
    moved: Vec<Moved>,
    /// In a child of it nothing of this is mapped.
    owner: Process,
}

/// Pages that have another address, to which they go back.
struct Moved {
    /// Where in the space they are.
    at: Range<usize>,
    home: NonNull<u8>,
    /// Where in the file they are.
    offset: usize,
}

// SAFETY: a range of addresses; its owner decides who may read and write there.
unsafe impl Send for Space {}
// SAFETY: as above.
unsafe impl Sync for Space {}

impl Space {
    /// mmap(2) of zeros that take memory where they are written, to be replaced by what fills it.
    pub(crate) fn reserve(file: &Arc<File>, len: usize) -> io::Result<Space> {
        let start = anonymous(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::empty())?;
        Ok(Space::at_address(file, start, len))
    }

    /// Finds `len` bytes of addresses where nothing is mapped, or was a moment ago. They leave the same remainder as
    /// `like` when divided by 2 MiB, so that whole page tables, and huge pages, of such an address stay whole.
    pub(crate) fn vacant(file: &Arc<File>, len: usize, like: usize) -> io::Result<Space> {
        let hole = len.saturating_add(TABLE);
        let start = anonymous(None, hole, ProtFlags::PROT_NONE, MapFlags::empty())?;
        // SAFETY: mapped just now; nothing refers to it.
        unsafe { munmap(start.cast(), hole) }?;
        let skip = like.wrapping_sub(start.addr().get()) % TABLE;
        // SAFETY: less than `TABLE`, by which the hole is longer.
        Ok(Space::at_address(file, unsafe { start.add(skip) }, 0))
    }

    fn at_address(file: &Arc<File>, start: NonNull<u8>, mapped: usize) -> Space {
        let (file, owner) = (Arc::clone(file), Process::current());
        Space { file, start, filled: 0, mapped, moved: Vec::new(), owner }
    }

    /// madvise(2): a child inherits nothing of what was filled, and core dumps leave it out.
    pub(crate) fn keep_private(&self) -> io::Result<()> {
        for advice in [MmapAdvise::MADV_DONTFORK, MmapAdvise::MADV_DONTDUMP] {
            // SAFETY: the advice changes no byte of this process.
            unsafe { madvise(self.start.cast(), self.mapped, advice) }?;
        }
        Ok(())
    }

    /// mmap(2): whole pages of the file, read only.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if somebody else has mapped something here, and whatever the kernel reports.
    pub(crate) fn push_pages(&mut self, len: usize, offset: usize) -> io::Result<()> {
        #[cfg(test)]
        mock::refuse(Call::Map)?;
        let (at, fixed) = self.next(len);
        let (flags, offset) = (MapFlags::MAP_SHARED | fixed, to_off(offset as u64)?);
        // SAFETY: what is replaced, if anything, is zeros that this has reserved and nobody has seen yet.
        let got = unsafe { mmap(Some(at), size(len)?, ProtFlags::PROT_READ, flags, &*self.file, offset) };
        self.push(got?.cast(), len)
    }

    /// mremap(2) with `MREMAP_DONTUNMAP` of the pages at `home`, and their entries in the page tables. Whoever
    /// touches them there takes a fault again. Where the kernel does not move shared pages (before Linux 5.13), or
    /// something is reserved, they are mapped. Errors as above.
    ///
    /// # Safety
    ///
    /// `home` is the address of a map, shared and writable, of `len` bytes of the file from `offset` on. It stays
    /// one until this is dropped.
    pub(crate) unsafe fn push_moved(
        &mut self,
        len: usize,
        home: NonNull<u8>,
        offset: usize,
    ) -> io::Result<()> {
        let (at, fixed) = self.next(len);
        if fixed == MapFlags::MAP_FIXED {
            return self.push_pages(len, offset);
        }
        // Without `MREMAP_FIXED` the address is a wish, and nothing is replaced.
        let to = NonZeroUsize::get(at) as *mut u8;
        // SAFETY: what is mapped at `home` stays mapped, and has the same bytes.
        let Ok(got) = (unsafe { remap(home, len, MRemapFlags::MREMAP_DONTUNMAP, NonNull::new(to)) }) else {
            return self.push_pages(len, offset);
        };
        self.push(got, len)?;
        self.moved.push(Moved { at: self.filled - len..self.filled, home, offset });
        Ok(())
    }

    /// Moves the pages that were moved here back, and unmaps the others. Where that is refused they take a fault again.
    ///
    /// # Errors
    ///
    /// If memory ran out in the middle of it: some pages have no map any more where they had been. Nobody may
    /// touch them there.
    pub(crate) fn give_back(&mut self) -> io::Result<()> {
        let moved = mem::take(&mut self.moved);
        if !self.owner.is_current() {
            self.mapped = 0;
            return Ok(());
        }
        let admitted = pressure::admit((moved.len() * DESCRIBED) as u64).is_ok();
        let (mut lost, mut end) = (Ok(()), 0);
        for moved in moved.into_iter().filter(|_| admitted) {
            match self.go_home(&moved) {
                Ok(true) => {
                    self.unmap(end..moved.at.start);
                    end = moved.at.end;
                }
                Ok(false) => {}
                Err(error) => lost = Err(error),
            }
        }
        self.unmap(end..self.mapped);
        self.mapped = 0;
        lost
    }

    /// mremap(2) to where these pages were. Returns whether they went; an error if they are not mapped there any more.
    fn go_home(&self, moved: &Moved) -> io::Result<bool> {
        let (from, len) = (self.at(moved.at.start), moved.at.len());
        // SAFETY: at both addresses there are the same pages, which nobody refers to at this one any more.
        if unsafe { remap(from, len, MRemapFlags::MREMAP_FIXED, Some(moved.home)) }.is_ok() {
            return Ok(true);
        }
        // As a rule the kernel refuses before it unmaps what is there, and this does nothing but look.
        // SAFETY: msync(2) changes no byte of a shared map.
        if unsafe { msync(moved.home.cast(), len, MsFlags::MS_ASYNC) }.is_ok() {
            return Ok(false);
        }
        #[cfg(test)]
        mock::refuse(Call::MapBack)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED_NOREPLACE;
        let (at, offset) = (Some(moved.home.addr()), to_off(moved.offset as u64)?);
        // SAFETY: nothing is replaced.
        let home = unsafe { mmap(at, size(len)?, prot, flags, &*self.file, offset) }?;
        for advice in [MmapAdvise::MADV_DONTFORK, MmapAdvise::MADV_DONTDUMP] {
            // SAFETY: this only changes what a child inherits and what a core dump has.
            unsafe { madvise(home, len, advice) }?;
        }
        Ok(false)
    }

    /// In a child the addresses may belong to something else by now.
    fn unmap(&self, range: Range<usize>) {
        if !range.is_empty() && self.owner.is_current() {
            // SAFETY: this has mapped it; whoever refers to it has this.
            let _unmapped = unsafe { munmap(self.at(range.start).cast(), range.len()) };
            debug_assert_eq!(_unmapped, Ok(()));
        }
    }

    /// Zeros, which may be written to. Errors as above.
    pub(crate) fn push_zeros(&mut self, len: usize) -> io::Result<()> {
        let (at, fixed) = self.next(len);
        if fixed == MapFlags::MAP_FIXED || len == 0 {
            self.filled += len;
            return Ok(());
        }
        let got = anonymous(Some(at), len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, fixed)?;
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
            // The address was a wish: for mremap(2), and for a kernel before 4.17.
            // SAFETY: nobody knows of this map.
            let _unmapped = unsafe { munmap(got.cast(), len) };
            debug_assert_eq!(_unmapped, Ok(()));
            return Err(Errno::EEXIST.into());
        }
        self.filled += len;
        self.mapped = self.mapped.max(self.filled);
        Ok(())
    }

    /// The address of a byte that was filled.
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset <= self.filled.max(self.mapped), "nothing is mapped at {offset}");
        // SAFETY: just checked to be in the range, or one past its end.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.unmap(0..self.mapped);
    }
}

/// mremap(2), as a raw call: musl's wrapper drops the address unless it comes with `MREMAP_FIXED`.
///
/// # Safety
///
/// That of mremap(2): whoever refers to what is mapped at `from` or, with `MREMAP_FIXED`, at `to` finds it there.
unsafe fn remap(
    from: NonNull<u8>,
    len: usize,
    how: MRemapFlags,
    to: Option<NonNull<u8>>,
) -> nix::Result<NonNull<u8>> {
    #[cfg(test)]
    mock::refuse_move(how, to, len)?;
    let flags = c_long::from((MRemapFlags::MREMAP_MAYMOVE | how).bits());
    let to = to.map_or(ptr::null_mut(), NonNull::as_ptr);
    // SAFETY: promised by the caller.
    let got = Errno::result(unsafe { syscall(SYS_mremap, from.as_ptr(), len, len, flags, to) })?;
    NonNull::new(ptr::with_exposed_provenance_mut(got as usize)).ok_or(Errno::EINVAL)
}

/// mmap(2) of anonymous memory.
fn anonymous(
    at: Option<NonZeroUsize>,
    len: usize,
    prot: ProtFlags,
    flags: MapFlags,
) -> io::Result<NonNull<u8>> {
    #[cfg(test)]
    mock::refuse(Call::Zeros)?;
    let flags = flags | MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: without `MAP_FIXED` nothing is replaced.
    Ok(unsafe { mmap_anonymous(at, size(len)?, prot, flags) }?.cast())
}

fn size(len: usize) -> io::Result<NonZeroUsize> {
    NonZeroUsize::new(len).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
