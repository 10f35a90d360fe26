//! The calls behind an arena: a memfd, its mapping, its holes, and tables beside it.
#![allow(unsafe_code)] // mappings, and slices over them

use std::fs::{self, File};
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::libc::{c_void, off_t};
use nix::sys::mman::{
    MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munlock, munmap,
};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::uio::pwrite;
use nix::time::{ClockId, clock_gettime};

#[cfg(test)]
use super::mock::{self, Call};
use super::platform::{self, COARSE, DISCARD, DONTDUMP, DONTFORK, HUGEPAGE, NORESERVE};
use super::process::Process;
use super::retry_errno;

/// Bytes that one page table maps, and of a huge page, where a page is 4 KiB.
pub(crate) const TABLE: usize = 2 << 20;

/// memfd_create(2): close-on-exec, `len` bytes of hole, sealed against shrinking and growing.
///
/// The file is cut to `RLIMIT_FSIZE` first, because ftruncate(2) beyond that limit raises SIGXFSZ.
pub(crate) fn memfd(len: u64) -> io::Result<(File, u64)> {
    let (file, len) = unsealed_memfd(len)?;
    #[cfg(test)]
    mock::refuse(Call::Seal)?;
    platform::seal_size(&file)?;
    Ok((file, len))
}

/// The same without seals, which can be added later.
pub(crate) fn unsealed_memfd(len: u64) -> io::Result<(File, u64)> {
    let len = len.min(file_size_limit());
    if cfg!(miri) {
        return Err(Errno::ENOSYS.into()); // it knows no memfd_create(2)
    }
    super::need_linux("sealing and handing over")?;
    #[cfg(test)]
    mock::refuse(Call::Memfd)?;
    let file = File::from(platform::memfd_create(c"ropewalk")?);
    #[cfg(test)]
    mock::refuse(Call::Resize)?;
    file.set_len(len)?;
    Ok((file, len))
}

/// Writable memory that a child of this process does not inherit, and that is left out of core dumps.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    owner: Process,
}

// SAFETY: a mapping is a range of addresses; its owner decides who may read and write there.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// What mmap(2) reports. EAGAIN, at the limit of locked memory, would say that the call can be repeated once something has
/// become ready.
pub(crate) fn not_mapped(error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::WouldBlock {
        return error;
    }
    let message = "mlockall(2) with MCL_FUTURE locks each new map, and locked memory is at its limit; raise RLIMIT_MEMLOCK";
    io::Error::new(io::ErrorKind::OutOfMemory, message)
}

impl Mapping {
    /// mmap(2): all of `file`, or anonymous memory.
    ///
    /// Under `mlockall(MCL_FUTURE)` the kernel would populate a new mapping; so it is made inaccessible and unlocked
    /// first. Pages that are committed later are not locked either.
    pub(crate) fn new(file: Option<&File>, len: usize) -> io::Result<Mapping> {
        if cfg!(miri) {
            return Mapping::for_miri(len);
        }
        // SAFETY: a new mapping, which replaces nothing.
        let start = unsafe { map(None, len, ProtFlags::PROT_NONE, file.map(|file| (file, 0))) };
        let start = start.map_err(|error| not_mapped(error.into()))?;
        let mapping = Mapping { start: start.cast(), len, owner: Process::current() };
        // SAFETY: nothing refers to the mapping yet.
        unsafe { mprotect(start, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE) }?;
        keep_private(start, len)?;
        Ok(mapping)
    }

    /// mmap(2) as Miri knows it. It knows none of the other calls.
    fn for_miri(len: usize) -> io::Result<Mapping> {
        let (bytes, prot) = (size(len)?, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
        // SAFETY: a new mapping, which replaces nothing.
        let start = unsafe { mmap_anonymous(None, bytes, prot, MapFlags::MAP_PRIVATE) }?;
        Ok(Mapping { start: start.cast(), len, owner: Process::current() })
    }

    #[inline]
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns whether a child inherited this value; the addresses are not mapped there, or to something else.
    #[inline]
    pub(crate) fn is_inherited(&self) -> bool {
        !self.owner.is_current()
    }

    /// madvise(2) with `MADV_POPULATE_WRITE`: gives a range memory and page table entries.
    ///
    /// # Errors
    ///
    /// `EINVAL` before Linux 5.14 and in gVisor.
    pub(crate) fn populate(&self, offset: usize, len: usize) -> nix::Result<()> {
        retry_errno(|| {
            #[cfg(test)]
            mock::refuse(Call::Populate)?;
            // SAFETY: in the mapping, as `range` checks.
            unsafe { platform::populate(self.range(offset, len).cast(), len) }
        })
        .map_err(of_memory)
    }

    /// madvise(2) with `MADV_HUGEPAGE`: advice only.
    pub(crate) fn prefer_huge_pages(&self) {
        let _ = self.advise(0, self.len, HUGEPAGE);
    }

    /// madvise(2) with `MADV_DONTNEED`: gives the memory of an anonymous range back.
    ///
    /// # Safety
    ///
    /// Nothing refers to the range.
    pub(crate) unsafe fn discard(&self, offset: usize, len: usize) -> nix::Result<()> {
        self.advise(offset, len, DISCARD)
    }

    /// mmap(2) with `MAP_FIXED`: shows `file` from `in_file` on in place of a range, read only, in one step; without a file,
    /// fresh anonymous memory.
    ///
    /// # Safety
    ///
    /// The bytes to which there are references are the same in the file, and the range is not written to. Without a file
    /// there is no reference to it.
    pub(crate) unsafe fn replace(
        &self,
        offset: usize,
        len: usize,
        file: Option<(&File, u64)>,
    ) -> nix::Result<()> {
        let writable = if file.is_none() { ProtFlags::PROT_WRITE } else { ProtFlags::empty() };
        // SAFETY: promised by the caller.
        let start =
            unsafe { map(Some(self.range(offset, len)), len, ProtFlags::PROT_READ | writable, file) }?;
        keep_private(start, len)?;
        if file.is_none() {
            let _ = self.advise(offset, len, HUGEPAGE);
        }
        Ok(())
    }

    fn advise(&self, offset: usize, len: usize, advice: MmapAdvise) -> nix::Result<()> {
        if cfg!(miri) {
            return Ok(()); // it knows no madvise(2)
        }
        // SAFETY: of the advice given here only `DISCARD` changes bytes, and `discard` is unsafe.
        unsafe { madvise(self.range(offset, len).cast(), len, advice) }
    }

    /// Returns the address of `len` bytes of the mapping.
    fn range(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset <= self.len && len <= self.len - offset, "{offset} + {len} of {}", self.len);
        // SAFETY: in the mapping, as just checked.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // In a child the addresses may belong to something else by now.
        if !self.is_inherited() {
            // SAFETY: mapped by `new`; every reference borrows this value.
            let _unmapped = unsafe { munmap(self.start.cast(), self.len) };
            debug_assert_eq!(_unmapped, Ok(()));
        }
    }
}

/// mmap(2): `file` from an offset on, shared, or anonymous memory; `at` an address in place of what is there. Not locked,
/// whatever mlockall(2) says.
///
/// # Safety
///
/// What is replaced at `at` may be.
unsafe fn map(
    at: Option<NonNull<u8>>,
    len: usize,
    prot: ProtFlags,
    file: Option<(&File, u64)>,
) -> nix::Result<NonNull<c_void>> {
    let fixed = if at.is_some() { MapFlags::MAP_FIXED } else { MapFlags::empty() };
    let at = at.map(NonNull::addr);
    let start = match file {
        // SAFETY: promised by the caller.
        Some((file, in_file)) => unsafe {
            mmap(at, size(len)?, prot, MapFlags::MAP_SHARED | fixed, file, to_off(in_file)?)
        },
        // SAFETY: as above.
        None => unsafe { mmap_anonymous(at, size(len)?, prot, MapFlags::MAP_PRIVATE | NORESERVE | fixed) },
    }?;
    // SAFETY: this only undoes what mlockall(2) did to the new mapping.
    let _ = unsafe { munlock(start, len) };
    Ok(start)
}

pub(super) fn size(len: usize) -> nix::Result<NonZeroUsize> {
    NonZeroUsize::new(len).ok_or(Errno::EINVAL)
}

/// madvise(2) with `MADV_DONTFORK` and `MADV_DONTDUMP`: no child inherits a map, and core dumps leave it out.
pub(super) fn keep_private(start: NonNull<c_void>, len: usize) -> nix::Result<()> {
    // SAFETY: the advice changes no byte of this process.
    unsafe { madvise(start, len, DONTFORK) }?;
    // SAFETY: as above. Failure only makes core dumps larger.
    let _ = unsafe { madvise(start, len, DONTDUMP) };
    Ok(())
}

/// fallocate(2): backs a range of the file with memory, or says that there is none.
///
/// The range is within the file.
pub(crate) fn allocate(file: &File, offset: u64, len: u64) -> nix::Result<()> {
    let (offset, len) = (to_off(offset)?, to_off(len)?);
    retry_errno(|| {
        #[cfg(test)]
        mock::refuse(Call::Allocate)?;
        platform::allocate(file, offset, len)
    })
    .map_err(of_memory)
}

/// fallocate(2) with `FALLOC_FL_PUNCH_HOLE`: gives the memory of a range back to the system.
pub(crate) fn punch_hole(file: &File, offset: u64, len: u64) -> nix::Result<()> {
    let (offset, len) = (to_off(offset)?, to_off(len)?);
    retry_errno(|| {
        #[cfg(test)]
        mock::refuse(Call::Punch)?;
        platform::punch_hole(file, offset, len)
    })
}

/// pwrite(2) of a zero: gives one page memory, where neither of the ways above exists.
pub(crate) fn write_zero(file: &File, offset: u64) -> nix::Result<()> {
    // Beyond `RLIMIT_FSIZE` the kernel would raise SIGXFSZ.
    if offset >= file_size_limit() {
        return Err(Errno::EFBIG);
    }
    let offset = to_off(offset)?;
    retry_errno(|| {
        #[cfg(test)]
        mock::refuse(Call::WriteZero)?;
        pwrite(file, &[0], offset)
    })
    .map(drop)
    .map_err(of_memory)
}

/// What a lack of memory is called: to populate a page that gets none is EFAULT, since to touch it would be SIGBUS; to a
/// memfd it is a lack of space. Both are so where the system never overcommits.
fn of_memory(error: Errno) -> Errno {
    if matches!(error, Errno::EFAULT | Errno::ENOSPC) { Errno::ENOMEM } else { error }
}

/// Entries that are zero and take memory where they are written: anonymous memory of its own.
///
/// Unlike a zeroed vector it costs no time to make, whatever the allocator, and its failure is an error.
pub(crate) struct Table<T> {
    /// Raw, since shared entries may be atomic: a pointer that was a slice's would be for reading only.
    map: MmapRaw,
    len: usize,
    entries: PhantomData<T>,
}

/// Types of which zero bytes are a value.
///
/// # Safety
///
/// They are, and the type has no padding and no drop glue.
pub(crate) unsafe trait Zeroable {}
// SAFETY: an integer.
unsafe impl Zeroable for u8 {}
// SAFETY: an integer.
unsafe impl Zeroable for u64 {}
// SAFETY: an integer.
unsafe impl Zeroable for AtomicU32 {}

impl<T: Zeroable> Table<T> {
    /// # Errors
    ///
    /// When the address space, or its limit, has no room.
    pub(crate) fn new(len: usize) -> io::Result<Table<T>> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut options = MmapOptions::new();
        options.len(bytes.max(1));
        // Miri knows no further flags.
        if !cfg!(miri) {
            options.no_reserve_swap();
        }
        let map = options.map_anon().map_err(not_mapped)?.into();
        Ok(Table { map, len, entries: PhantomData })
    }
}

impl<T: Zeroable> Deref for Table<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `new` mapped so many entries, which were zero and have only been written as such since.
        unsafe { slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

impl<T: Zeroable> DerefMut for Table<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; the table is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len) }
    }
}

/// clock_gettime(2), `CLOCK_MONOTONIC`, in nanoseconds.
pub(crate) fn now() -> u64 {
    clock(ClockId::CLOCK_MONOTONIC)
}

/// clock_gettime(2), `CLOCK_MONOTONIC_COARSE` where there is one, in nanoseconds: up to 10 ms behind [`now`], and a quarter
/// of its cost.
pub(crate) fn now_coarse() -> u64 {
    clock(COARSE)
}

fn clock(id: ClockId) -> u64 {
    clock_gettime(id).map_or(0, |time| {
        let time = Duration::from(time);
        time.as_secs() * 1_000_000_000 + u64::from(time.subsec_nanos())
    })
}

/// Bytes of a huge page, where the system has any for shared memory that asks for them.
pub(crate) fn huge_page_size() -> Option<usize> {
    #[cfg(test)]
    if let Some(size) = mock::huge_page_size() {
        return Some(size);
    }
    let setting = |name| fs::read_to_string(format!("/sys/kernel/mm/transparent_hugepage/{name}")).ok();
    // The choice is in brackets.
    let shared = setting("shmem_enabled")?;
    let refused = ["[never]", "[deny]"].iter().any(|choice| shared.contains(choice));
    if refused { None } else { setting("hpage_pmd_size")?.trim().parse().ok() }
}

/// Bytes of physical memory; 1 GiB if the system does not tell.
pub(crate) fn physical_memory() -> u64 {
    platform::physical_memory().unwrap_or(1 << 30)
}

/// getrlimit(2), `RLIMIT_FSIZE`.
pub(crate) fn file_size_limit() -> u64 {
    limit(Resource::RLIMIT_FSIZE)
}

/// getrlimit(2): the soft limit, [`u64::MAX`] if there is none.
#[allow(clippy::useless_conversion, clippy::unnecessary_fallible_conversions)] // a limit has 32 bits on some targets
pub(super) fn limit(resource: Resource) -> u64 {
    if cfg!(miri) {
        return u64::MAX; // it knows no getrlimit(2)
    }
    match getrlimit(resource) {
        Ok((RLIM_INFINITY, _)) | Err(_) => u64::MAX,
        Ok((soft, _)) => soft.try_into().unwrap_or(u64::MAX),
    }
}

pub(super) fn to_off(value: u64) -> nix::Result<off_t> {
    off_t::try_from(value).map_err(|_| Errno::EFBIG)
}
