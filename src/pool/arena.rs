//! The backing of a pool's pages: one sparse memfd, mapped once, or anonymous memory where no memfd can be had.
#![allow(unsafe_code)] // raw access to the mapping

use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::runs::PageRun;
use crate::sys::memory::{self, Mapping, TABLE};
use crate::sys::shown::{self, InFile};
use crate::sys::space::MAP_COST;
use crate::sys::{self, is_unsupported, pressure};

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
    /// One memfd: pages can be mapped a second time, so views are mapped.
    #[default]
    Memfd,
    /// Anonymous memory, because memfd_create(2) was refused, or the system is not Linux: views over pages that are not
    /// adjacent are copied.
    Anonymous,
}

/// How a pool's pages are given memory: the best way that the kernel supports.
///
/// # Examples
///
/// ```
/// use ropewalk::{Commit, Pool};
///
/// let pool = Pool::new()?;
/// if pool.stats().commit != Commit::Populate {
///     eprintln!("an old kernel: first use of a page takes a page fault");
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Commit {
    /// madvise(2) with `MADV_POPULATE_WRITE`, since Linux 5.14: memory and page table entries in one call.
    #[default]
    Populate,
    /// fallocate(2): memory; each page takes a page fault when it is first touched.
    Allocate,
    /// pwrite(2) of one byte to each page, where neither is supported, as in gVisor.
    Write,
    /// A page fault when a page is first touched: anonymous memory before Linux 5.14, or on another system.
    Fault,
}

/// The ways in the order in which they are tried.
const WAYS: [Commit; 4] = [Commit::Populate, Commit::Allocate, Commit::Write, Commit::Fault];

pub(crate) struct Arena {
    map: Mapping,
    /// The memfd that is mapped; `None` for anonymous memory.
    file: Option<Arc<File>>,
    /// Bytes of both before the first page, which is aligned to [`TABLE`].
    skip: usize,
    /// Bytes of pages.
    len: usize,
    /// log2 of the bytes per page.
    page_shift: u32,
    /// An index into [`WAYS`].
    way: AtomicU8,
    /// The kernel refuses to punch holes.
    keeps_memory: AtomicBool,
}

impl Arena {
    /// memfd_create(2) and mmap(2): `len` bytes in pages of `page` bytes; where there is no memfd, up to `private` bytes of
    /// anonymous memory.
    ///
    /// # Errors
    ///
    /// When the address space has no room, or `RLIMIT_FSIZE` is less than a memfd of that size.
    pub(crate) fn new(len: u64, private: u64, page: usize, huge: bool) -> io::Result<Arena> {
        let arena = Self::on_memfd(len, page)
            .or_else(|_| Ok::<_, io::Error>(Self::over(anonymous(len, private)?, None, len, page)))?;
        if huge {
            arena.map.prefer_huge_pages();
        }
        Ok(arena)
    }

    /// The same over a memfd that is sealed later, in which the first page is at offset 0. Never anonymous memory.
    pub(crate) fn for_handover(len: u64, page: usize) -> io::Result<Arena> {
        Self::over_memfd(memory::unsealed_memfd(len)?, len, page)
    }

    fn on_memfd(len: u64, page: usize) -> io::Result<Arena> {
        Self::over_memfd(memory::memfd(len.saturating_add(TABLE as u64))?, len, page)
    }

    fn over_memfd((file, granted): (File, u64), len: u64, page: usize) -> io::Result<Arena> {
        if granted < len {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let map =
            Mapping::new(Some(&file), usize::try_from(granted).map_err(|_| io::ErrorKind::OutOfMemory)?)?;
        Ok(Self::over(map, Some(Arc::new(file)), len, page))
    }

    /// Up to `private` bytes of anonymous memory in pages of [`TABLE`] bytes, which are aligned, for [`show`](Arena::show).
    pub(crate) fn aligned(len: u64, private: u64) -> io::Result<Arena> {
        let arena = Self::over(anonymous(len.saturating_add(TABLE as u64), private)?, None, len, TABLE);
        arena.map.prefer_huge_pages();
        Ok(arena)
    }

    fn over(map: Mapping, file: Option<Arc<File>>, len: u64, page: usize) -> Arena {
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(map.len());
        let skip = map.start().as_ptr().align_offset(TABLE);
        let skip = if skip <= map.len() - len { skip } else { 0 };
        let (way, keeps_memory) = (AtomicU8::new(0), AtomicBool::new(false));
        Arena { map, file, skip, len, page_shift: page.trailing_zeros(), way, keeps_memory }
    }

    /// Bytes per page.
    #[inline]
    pub(crate) fn page_size(&self) -> usize {
        1 << self.page_shift
    }

    /// Returns whether a child of the process that made the arena runs: nothing is mapped there.
    #[inline]
    pub(crate) fn is_inherited(&self) -> bool {
        self.map.is_inherited()
    }

    pub(crate) fn file(&self) -> Option<&Arc<File>> {
        self.file.as_ref()
    }

    pub(crate) fn backing(&self) -> Backing {
        if self.file.is_some() { Backing::Memfd } else { Backing::Anonymous }
    }

    pub(crate) fn way_to_commit(&self) -> Commit {
        WAYS[usize::from(self.way.load(Ordering::Relaxed))]
    }

    /// Returns whether the kernel has refused to take memory back.
    pub(crate) fn keeps_memory(&self) -> bool {
        self.keeps_memory.load(Ordering::Relaxed)
    }

    /// The address of the byte `offset` bytes into the arena, with provenance for all of it.
    ///
    /// # Panics
    ///
    /// If `offset` lies beyond the arena.
    #[inline]
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset <= self.len, "offset {offset} is beyond the arena's {} bytes", self.len);
        // SAFETY: within the mapping, or one past its end: `over` has made sure that `skip + len` is.
        unsafe { self.map.start().add(self.skip + offset) }
    }

    /// The address of a page.
    #[inline]
    pub(crate) fn page(&self, page: u32) -> NonNull<u8> {
        self.at((page as usize) << self.page_shift)
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

    /// Gives pages memory and, where the kernel can, page table entries, so that touching them cannot fail.
    ///
    /// Remembers what the kernel does not support.
    ///
    /// # Errors
    ///
    /// When there is no memory; touching such a page would be SIGBUS or a kill.
    pub(crate) fn commit(&self, run: PageRun) -> io::Result<()> {
        let (offset, len) = self.bytes_of(run);
        let _admission = pressure::admit(len as u64)?;
        loop {
            let way = self.way.load(Ordering::Relaxed);
            match self.commit_by(WAYS[usize::from(way)], self.in_file(offset), len) {
                Err(error) if is_unsupported(error) && usize::from(way) + 1 < WAYS.len() => {
                    self.way.fetch_max(way + 1, Ordering::Relaxed);
                }
                done => return Ok(done?),
            }
        }
    }

    /// fallocate(2): gives pages of the memfd memory, and no page table entries: what is written to the file is not
    /// touched here.
    ///
    /// # Errors
    ///
    /// When there is no memory, or the kernel does not support it.
    pub(crate) fn commit_unmapped(&self, run: PageRun) -> io::Result<()> {
        let (offset, len) = self.bytes_of(run);
        let _admission = pressure::admit(len as u64)?;
        Ok(self.commit_by(Commit::Allocate, self.in_file(offset), len)?)
    }

    fn commit_by(&self, way: Commit, offset: usize, len: usize) -> sys::Result {
        match (way, &self.file) {
            (Commit::Populate, _) => self.map.populate(offset, len),
            (Commit::Allocate, Some(file)) => memory::allocate(file, offset as u64, len as u64),
            (Commit::Write, Some(file)) => (offset..offset + len)
                .step_by(sys::page_size())
                .try_for_each(|page| memory::write_zero(file, page as u64)),
            (Commit::Fault, None) => Ok(()),
            _ => Err(sys::UNSUPPORTED),
        }
    }

    /// Gives the memory of these pages, which nothing refers to, back to the system.
    pub(crate) fn decommit(&self, run: PageRun) -> io::Result<()> {
        let (offset, len) = self.bytes_of(run);
        let done = match &self.file {
            Some(file) => memory::punch_hole(file, self.in_file(offset) as u64, len as u64),
            // SAFETY: as the caller says, nothing refers to the pages.
            None => unsafe { self.map.discard(self.in_file(offset), len) },
        };
        self.keeps_memory.store(done.is_err_and(is_unsupported), Ordering::Relaxed);
        Ok(done?)
    }

    /// Overwrites pages that have no owner any more.
    pub(crate) fn zero(&self, run: PageRun) {
        let (offset, len) = self.bytes_of(run);
        // SAFETY: within the mapping, see `bytes_of`; the caller is the last owner of the pages, which have memory.
        unsafe { ptr::write_bytes(self.at(offset).as_ptr(), 0, len) };
    }

    /// The addresses of all pages.
    pub(crate) fn addresses(&self) -> Range<usize> {
        let start = self.at(0).addr().get();
        start..start + self.len
    }

    /// The first `len` bytes from `page` on, which the caller knows to be full and not to change.
    pub(crate) fn filled(&self, page: u32, len: usize) -> &[u8] {
        let (offset, _) = self.bytes_of(PageRun::new(page, 1));
        assert!(len <= self.len - offset);
        // SAFETY: within the mapping; as the caller says, the bytes are initialised and not written.
        unsafe { slice::from_raw_parts(self.at(offset).as_ptr(), len) }
    }

    /// mmap(2): shows `file` from `in_file` on in place of pages, whose bytes are the same there and do not change.
    pub(crate) fn show(&self, run: PageRun, file: &Arc<File>, in_file: u64) -> io::Result<()> {
        let (offset, len) = self.bytes_of(run);
        // Before Linux 6.12 a failure for want of memory would leave a hole in the arena.
        let _admission = pressure::admit(MAP_COST)?;
        let addresses = self.at(offset).addr().get()..self.at(offset).addr().get() + len;
        // Before the page is replaced, so that none shows the file without being known to: it would be written to.
        shown::show(addresses.clone(), InFile { file: Arc::clone(file), offset: in_file, home: true });
        // SAFETY: as the caller says.
        let replaced = unsafe { self.map.replace(self.in_file(offset), len, Some((file, in_file))) };
        if replaced.is_err() {
            shown::hide(addresses);
        }
        replaced.map_err(|error| memory::not_mapped(error.into()))
    }

    /// Returns whether a page shows a file.
    pub(crate) fn shows_file(&self, page: PageRun) -> bool {
        shown::first_part(self.filled(page.start, 1)).1.is_some()
    }

    /// Gives the memory of pages back to which nothing refers, and lets them be anonymous memory again.
    pub(crate) fn forget(&self, run: PageRun) -> io::Result<()> {
        let (offset, len) = self.bytes_of(run);
        if !self.shows_file(run) {
            return self.decommit(run);
        }
        let start = self.at(offset).addr().get();
        shown::hide(start..start + len);
        // SAFETY: as the caller says, nothing refers to the pages.
        unsafe { self.map.replace(self.in_file(offset), len, None) }
            .map_err(|error| memory::not_mapped(error.into()))
    }

    /// Where in the arena these pages are, in bytes.
    fn bytes_of(&self, run: PageRun) -> (usize, usize) {
        let (offset, len) = ((run.start as usize) << self.page_shift, (run.len as usize) << self.page_shift);
        debug_assert!(offset + len <= self.len);
        (offset, len)
    }
}

/// mmap(2): `len` bytes of anonymous memory, if that is at most `most`: more would leave other callers without any.
fn anonymous(len: u64, most: u64) -> io::Result<Mapping> {
    let bytes = usize::try_from(len).ok().filter(|_| len <= most);
    Mapping::new(None, bytes.ok_or(io::ErrorKind::OutOfMemory)?)
}
