//! The memory itself: one sparse memfd, mapped once, or anonymous memory where no memfd can be had.
#![allow(unsafe_code)] // raw access to the mapping

use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

use super::pages::Run;
use crate::sys::memory::{self, TABLE};
use crate::sys::pressure;

/// What the pages of a pool are made of.
///
/// # Examples
///
/// ```
/// use ropewalk::{Backing, Pool};
///
/// if Pool::new()?.stats().backing == Backing::Anonymous {
///     eprintln!("memfd_create was refused: views that cannot borrow will copy");
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backing {
    /// One memfd: pages can be given a second address, so views are mapped.
    #[default]
    Memfd,
    /// Anonymous memory, because memfd_create(2) was refused: views over pages that are not side by
    /// side are copied.
    Anonymous,
}

/// Smallest arena worth having; below it the pool reports the kernel's refusal.
const SMALLEST: u64 = 1 << 20;

pub(crate) struct Arena {
    map: MmapRaw,
    /// The memfd that is mapped; `None` for anonymous memory.
    file: Option<Arc<File>>,
    /// Bytes of both before the first page, which is aligned like a huge page.
    skip: usize,
    /// Bytes of pages.
    len: usize,
    /// Of a page's size, which is a power of two: to divide by one that is not known to be takes long.
    page_shift: u32,
}

impl Arena {
    /// Maps `len` bytes, or as much of it as the limits of this process admit.
    /// In pages of `page` bytes; if those are `huge`, the kernel is asked for such.
    pub(crate) fn new(len: u64, page: usize, huge: bool) -> io::Result<Arena> {
        let arena = Self::on_memfd(len, page).or_else(|_| Self::anonymous(len, page))?;
        // A child that wrote into shared memory would write into this process's payloads. Failure is
        // a kernel older than 2.6.16.
        arena.map.advise(Advice::DontFork)?;
        if huge {
            // Advice only: where the kernel has none, the pages are small.
            let _ = arena.map.advise(Advice::HugePage);
        }
        Ok(arena)
    }

    fn on_memfd(len: u64, page: usize) -> io::Result<Arena> {
        let (file, granted) = memory::memfd(len + TABLE as u64)?;
        if granted < len.min(SMALLEST) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let map = halving(granted, page, |len| MmapOptions::new().len(len).map_raw(&file))?;
        let (file, len) = (Some(Arc::new(file)), usize::try_from(len).unwrap_or(usize::MAX));
        // Where a limit has cut it short, nothing of it is given away.
        let skip = if map.len() >= len + TABLE { map.as_ptr().align_offset(TABLE) } else { 0 };
        let len = len.min(map.len());
        Ok(Arena { map, file, skip, len, page_shift: page.trailing_zeros() })
    }

    fn anonymous(len: u64, page: usize) -> io::Result<Arena> {
        let map = halving(len, page, |len| MmapOptions::new().len(len).no_reserve_swap().map_anon())?;
        let len = map.len();
        Ok(Arena { map: map.into(), file: None, skip: 0, len, page_shift: page.trailing_zeros() })
    }

    #[inline]
    pub(crate) fn page_size(&self) -> usize {
        1 << self.page_shift
    }

    /// Whole pages in the arena.
    pub(crate) fn pages(&self) -> u32 {
        u32::try_from(self.len / self.page_size()).unwrap_or(u32::MAX)
    }

    pub(crate) fn file(&self) -> Option<&Arc<File>> {
        self.file.as_ref()
    }

    pub(crate) fn backing(&self) -> Backing {
        if self.file.is_some() { Backing::Memfd } else { Backing::Anonymous }
    }

    /// The address of the byte `offset` bytes into the arena, with provenance for all of it.
    ///
    /// # Panics
    ///
    /// If `offset` lies beyond the arena.
    #[inline]
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset <= self.len, "offset {offset} is beyond the arena's {} bytes", self.len);
        // SAFETY: just checked to be within the mapping, or one past its end.
        let address = unsafe { self.map.as_mut_ptr().add(self.skip + offset) };
        // SAFETY: a mapping never starts at address zero.
        unsafe { NonNull::new_unchecked(address) }
    }

    /// Where in the arena these bytes lie, if they do.
    pub(crate) fn offset_of(&self, bytes: &[u8]) -> Option<usize> {
        let offset = bytes.as_ptr().addr().checked_sub(self.at(0).addr().get())?;
        (offset.checked_add(bytes.len())? <= self.len).then_some(offset)
    }

    /// Where in the file a byte of the arena lies.
    pub(crate) fn in_file(&self, offset: usize) -> usize {
        self.skip + offset
    }

    /// Puts pages into the page tables, so that neither this process nor the kernel faults on them later.
    /// If they are not `warm` they get memory first.
    ///
    /// # Errors
    ///
    /// When there is no memory for them; touching such a page would have been SIGBUS or a kill.
    pub(crate) fn commit(&self, run: Run, warm: bool) -> io::Result<()> {
        let (offset, len) = self.mapped_at(run);
        let _admission = pressure::admit(if warm { 0 } else { len as u64 })?;
        // A read fault maps sixteen pages that have memory at once, and writable: the arena is shared.
        let populate = if warm { Advice::PopulateRead } else { Advice::PopulateWrite };
        match (self.map.advise_range(populate, offset, len), &self.file) {
            // Before Linux 5.14: the memory can still be had beforehand, the page faults cannot.
            (Err(error), Some(file)) if error.kind() == io::ErrorKind::InvalidInput => {
                memory::allocate(file, offset as u64, len as u64)
            }
            (Err(error), None) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            (result, _) => result,
        }
    }

    /// pwrite(2): fills cold pages, from the start of page `first` on, without a fault and without zeroing
    /// them first. Returns how many bytes the kernel took: all of them, unless it has no memory.
    pub(crate) fn write(&self, first: u32, bytes: &[u8]) -> usize {
        let Some(file) = &self.file else { return 0 };
        let start = self.in_file(first as usize * self.page_size());
        let mut done = 0;
        while done < bytes.len() {
            match memory::write_at(file, &bytes[done..], (start + done) as u64) {
                Ok(count) if count > 0 => done += count,
                _ => break,
            }
        }
        done
    }

    /// Gives the memory of these pages back to the system.
    pub(crate) fn decommit(&self, run: Run) -> io::Result<()> {
        let (offset, len) = self.mapped_at(run);
        match &self.file {
            Some(file) => memory::punch_hole(file, offset as u64, len as u64),
            // SAFETY: the pages are private to this arena and, as the caller took them, nobody's.
            None => unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len) },
        }
    }

    /// Overwrites pages that nobody owns any more.
    pub(crate) fn zero(&self, run: Run) {
        let (offset, len) = self.bytes_of(run);
        // SAFETY: within the mapping, see `bytes_of`; the caller is the last owner of the pages.
        unsafe { ptr::write_bytes(self.at(offset).as_ptr(), 0, len) };
    }

    /// Where in the map, and in the file, these pages are, in bytes.
    fn mapped_at(&self, run: Run) -> (usize, usize) {
        let (offset, len) = self.bytes_of(run);
        (self.in_file(offset), len)
    }

    /// Where in the arena these pages are, in bytes.
    fn bytes_of(&self, run: Run) -> (usize, usize) {
        debug_assert!(run.end() <= self.pages());
        (run.start as usize * self.page_size(), run.len as usize * self.page_size())
    }
}

/// Tries `map` with `len` bytes and, as long as the kernel refuses, with half as many.
fn halving<M>(len: u64, page: usize, map: impl Fn(usize) -> io::Result<M>) -> io::Result<M> {
    let mut len = len;
    loop {
        let whole_pages = usize::try_from(len).unwrap_or(usize::MAX) / page * page;
        match map(whole_pages) {
            Err(_) if len / 2 >= SMALLEST => len /= 2,
            done => return done,
        }
    }
}
