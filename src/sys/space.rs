//! Address space that is filled from its start to its end: a view's memory.
//!
//! ```text
//!   a reservation ─► given back: a hole ─► pages │ zeros │ moved │ pages ►      MAP_FIXED_NOREPLACE
//! ```
//!
//! Mapping into a hole spares the kernel splitting and removing a part of the reservation for each map
//! (`docs/design.md`, section 7, `stitch`). Another thread may map something into the hole meanwhile; then another one
//! is looked for.
//!
//! Pages of the arena can be *moved* here with their page table entries, so that reading them takes no page fault. The
//! arena's mapping stays, without entries, and gets them back in the end.
#![allow(unsafe_code)] // maps at fixed addresses

use std::fs::File;
use std::io;
use std::mem;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc::c_int;
use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, mmap_anonymous, msync, munmap};

use super::memory::{TABLE, keep_private, not_mapped, size, to_off};
#[cfg(test)]
use super::mock::{self, Call};
use super::need_linux;
use super::platform::{self, MREMAP_DONTUNMAP, MREMAP_FIXED, NOREPLACE, NORESERVE};
use super::pressure;
use super::process::Process;
use super::shown::{self, InFile};

/// Bytes that the kernel may need to describe a map and for its page tables.
pub(crate) const MAP_COST: u64 = 8 << 10;

/// A range of addresses that only this value maps. Dropping it is munmap(2).
pub(crate) struct Space {
    start: NonNull<u8>,
    /// Bytes from `start` on that are mapped.
    filled: usize,
    /// In ascending order.
    moved: Vec<Moved>,
    /// In a child of this process nothing is mapped.
    owner: Process,
}

/// Pages that were moved here from the arena, and their address there.
struct Moved {
    /// Bytes of the space, from its start.
    at: Range<usize>,
    home: NonNull<u8>,
    /// The arena's memfd, and their offset there.
    file: Arc<File>,
    offset: usize,
}

// SAFETY: the value is a range of addresses; its owner decides who reads and writes there.
unsafe impl Send for Space {}
// SAFETY: as above.
unsafe impl Sync for Space {}

impl Space {
    /// mmap(2) and munmap(2): finds a hole of `len` bytes. Its address agrees with `like` modulo 2 MiB, so that whole
    /// page tables can be moved and huge pages stay whole. Another thread may map something into it.
    pub(crate) fn vacant(len: usize, like: usize) -> io::Result<Space> {
        need_linux("maps of a view")?;
        let hole = len.saturating_add(TABLE);
        let start = anonymous(None, hole, ProtFlags::PROT_NONE, MapFlags::empty())?;
        // SAFETY: mapped just now; nothing refers to it.
        unsafe { munmap(start.cast(), hole) }?;
        let skip = like.wrapping_sub(start.addr().get()) % TABLE;
        // SAFETY: less than `TABLE`, by which the hole is longer.
        let start = unsafe { start.add(skip) };
        Ok(Space { start, filled: 0, moved: Vec::new(), owner: Process::current() })
    }

    /// mmap(2): reserves addresses for a map that is made after this value is dropped. No memory, and nothing reads them.
    ///
    /// # Errors
    ///
    /// `ENOMEM` where the address space or the number of maps is limited.
    pub(crate) fn reserve(len: usize) -> io::Result<Space> {
        let start = anonymous(None, len, ProtFlags::PROT_NONE, MapFlags::empty()).map_err(not_mapped)?;
        Ok(Space { start, filled: len, moved: Vec::new(), owner: Process::current() })
    }

    /// No child inherits the space, and core dumps leave it out.
    pub(crate) fn keep_private(&self) -> io::Result<()> {
        Ok(keep_private(self.start.cast(), self.filled)?)
    }

    /// mmap(2): maps whole pages of the file, read only.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if another thread has mapped something into the hole, and what the kernel reports.
    pub(crate) fn push_pages(&mut self, file: &File, len: usize, offset: usize) -> io::Result<()> {
        #[cfg(test)]
        mock::refuse(Call::Map)?;
        let (flags, offset) = (MapFlags::MAP_SHARED | NOREPLACE, to_off(offset as u64)?);
        // SAFETY: nothing is replaced.
        let got = unsafe { mmap(Some(self.next()), size(len)?, ProtFlags::PROT_READ, flags, file, offset) };
        self.push(got?.cast(), len)
    }

    /// mmap(2): the same, of a file that bytes can be sent and read from too.
    pub(crate) fn push_shown(&mut self, at: InFile, len: usize) -> io::Result<()> {
        let start = self.start.addr().get() + self.filled;
        let offset = usize::try_from(at.offset).map_err(|_| Errno::EOVERFLOW)?;
        self.push_pages(&at.file, len, offset)?;
        shown::show(start..start + len, InFile { home: false, ..at });
        Ok(())
    }

    /// mremap(2) with `MREMAP_DONTUNMAP`: moves the pages at `home` here, with their page table entries. Touching them at
    /// `home` takes a page fault then. Where the kernel does not move shared pages (before Linux 5.13) they are mapped.
    /// Errors as for [`push_pages`](Space::push_pages).
    ///
    /// # Safety
    ///
    /// At `home`, `len` bytes of the file from `offset` on are mapped, shared and writable, until this value is dropped.
    pub(crate) unsafe fn push_moved(
        &mut self,
        file: &Arc<File>,
        len: usize,
        home: NonNull<u8>,
        offset: usize,
    ) -> io::Result<()> {
        // Without `MREMAP_FIXED` the address is a hint, and nothing is replaced.
        let to = self.next().get() as *mut u8;
        // SAFETY: `home` stays mapped, with the same bytes; nothing is replaced.
        let Ok(got) = (unsafe { remap(home, len, MREMAP_DONTUNMAP, to) }) else {
            return self.push_pages(file, len, offset);
        };
        self.push(got, len)?;
        let at = self.filled - len..self.filled;
        self.moved.push(Moved { at, home, file: Arc::clone(file), offset });
        Ok(())
    }

    /// Moves pages back to the arena, and unmaps the others. Pages for which the kernel refuses that are unmapped here,
    /// and take a page fault in the arena.
    ///
    /// # Errors
    ///
    /// When memory ran out between two steps of the kernel: the arena has no mapping of some pages, which must not be
    /// touched there.
    pub(crate) fn give_back(&mut self) -> io::Result<()> {
        let moved = mem::take(&mut self.moved);
        if !self.owner.is_current() {
            self.filled = 0;
            return Ok(());
        }
        self.hide_files();
        let admitted = pressure::admit(moved.len() as u64 * MAP_COST).is_ok();
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
        self.unmap(end..self.filled);
        self.filled = 0;
        lost
    }

    /// Forgets the files that are mapped here, before something else is.
    fn hide_files(&mut self) {
        if self.owner.is_current() {
            let start = self.start.addr().get();
            shown::hide(start..start + self.filled);
        }
    }

    /// mremap(2): moves pages back to the arena. Returns whether they moved; an error if the arena does not map them any
    /// more.
    fn go_home(&self, moved: &Moved) -> io::Result<bool> {
        let (from, len) = (self.at(moved.at.start), moved.at.len());
        // SAFETY: both addresses map the same pages, and nothing refers to this one: the view is being dropped.
        if unsafe { remap(from, len, MREMAP_FIXED, moved.home.as_ptr()) }.is_ok() {
            return Ok(true);
        }
        // The kernel nearly always refuses before it unmaps the destination. msync(2) fails where nothing is mapped.
        // SAFETY: msync(2) changes no byte of a shared mapping.
        if unsafe { msync(moved.home.cast(), len, MsFlags::MS_ASYNC) }.is_ok() {
            return Ok(false);
        }
        #[cfg(test)]
        mock::refuse(Call::MapBack)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | NOREPLACE;
        let (at, offset) = (Some(moved.home.addr()), to_off(moved.offset as u64)?);
        // SAFETY: `MAP_FIXED_NOREPLACE` replaces nothing.
        let home = unsafe { mmap(at, size(len)?, prot, flags, &*moved.file, offset) }?;
        keep_private(home, len)?;
        Ok(false)
    }

    /// munmap(2), unless this is a child: there, other memory may be mapped at these addresses.
    fn unmap(&self, range: Range<usize>) {
        if !range.is_empty() && self.owner.is_current() {
            // SAFETY: mapped by this value, which everyone who refers to it keeps alive.
            let _unmapped = unsafe { munmap(self.at(range.start).cast(), range.len()) };
            debug_assert_eq!(_unmapped, Ok(()));
        }
    }

    /// mmap(2): appends zeros that may be written to. Errors as for [`push_pages`](Space::push_pages).
    pub(crate) fn push_zeros(&mut self, len: usize) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let got = anonymous(Some(self.next()), len, prot, NOREPLACE)?;
        self.push(got, len)
    }

    /// Returns the address of the next byte.
    fn next(&self) -> NonZeroUsize {
        self.start.addr().saturating_add(self.filled)
    }

    fn push(&mut self, got: NonNull<u8>, len: usize) -> io::Result<()> {
        if got.addr() != self.next() {
            // The address is a hint for mremap(2), and for mmap(2) before Linux 4.17.
            // SAFETY: mapped just now; nothing refers to it.
            let _unmapped = unsafe { munmap(got.cast(), len) };
            debug_assert_eq!(_unmapped, Ok(()));
            return Err(Errno::EEXIST.into());
        }
        self.filled += len;
        Ok(())
    }

    /// Returns the address of a byte that was filled.
    ///
    /// # Panics
    ///
    /// If nothing is mapped there.
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset <= self.filled, "nothing is mapped at {offset}");
        // SAFETY: checked above to be in the range, or one past its end.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.hide_files();
        self.unmap(0..self.filled);
    }
}

/// mremap(2). Where the mock kernel refuses to move pages back with ENOMEM, it has unmapped what was there.
///
/// # Safety
///
/// As for [`platform::mremap`].
unsafe fn remap(from: NonNull<u8>, len: usize, how: c_int, to: *mut u8) -> nix::Result<NonNull<u8>> {
    #[cfg(test)]
    mock::refuse(if how == MREMAP_FIXED { Call::MoveBack } else { Call::Move }).inspect_err(|error| {
        if let (Errno::ENOMEM, MREMAP_FIXED, Some(to)) = (error, how, NonNull::new(to)) {
            // SAFETY: as the kernel would have done; the caller knows that it may.
            unsafe { munmap(to.cast(), len) }.expect("mapped until now");
        }
    })?;
    // SAFETY: promised by the caller.
    unsafe { platform::mremap(from, len, how, to) }
}

/// mmap(2): maps anonymous memory.
fn anonymous(
    at: Option<NonZeroUsize>,
    len: usize,
    prot: ProtFlags,
    flags: MapFlags,
) -> io::Result<NonNull<u8>> {
    #[cfg(test)]
    mock::refuse(Call::Zeros)?;
    let flags = flags | MapFlags::MAP_PRIVATE | NORESERVE;
    // SAFETY: without `MAP_FIXED` nothing is replaced.
    Ok(unsafe { mmap_anonymous(at, size(len)?, prot, flags) }?.cast())
}
