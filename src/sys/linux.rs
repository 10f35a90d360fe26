//! Calls that Linux has and other systems lack or make in another way. `portable.rs` has the same names for them; `mod.rs`
//! chooses one of the two.
#![allow(unsafe_code)] // raw calls, and advice about memory

use std::ffi::CStr;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::ptr::{self, NonNull};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{
    self, AtFlags, FallocateFlags, FcntlArg, OFlag, PosixFadviseAdvice, SealFlag, SpliceFFlags, fallocate,
    fcntl, posix_fadvise,
};
use nix::libc::{self, SYS_mremap, c_int, c_long, c_uint, c_void, off_t};
use nix::sys::mman::{MapFlags, MmapAdvise, madvise};
use nix::sys::resource::Resource;
use nix::sys::sendfile::sendfile64;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::socket::{MsgFlags, recvmsg};
use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, fstatfs};
use nix::sys::sysinfo::sysinfo;
use nix::time::ClockId;
use nix::unistd::{Whence, lseek64, pipe2};

#[cfg(test)]
use super::mock::{self, Call};
use super::{field, page_size, retry};

pub(super) use libc::{
    MREMAP_DONTUNMAP, MREMAP_FIXED, MSG_CMSG_CLOEXEC, MSG_ERRQUEUE, MSG_NOSIGNAL, MSG_ZEROCOPY, O_TMPFILE,
    POLLRDHUP, SOL_UDP, UDP_GRO, preadv64,
};
pub(super) use nix::fcntl::copy_file_range;

/// Since Linux 6.5; not in `libc` for all targets.
pub(super) const SCM_PIDFD: c_int = 4;

/// The flag with which UDP sends nothing and counts the bytes all the same; not in `libc`.
pub(super) const MSG_PROBE: c_int = 0x10;

/// The flag with which a receive tells the length that the message had.
pub(super) const MSG_TELL_LEN: c_int = libc::MSG_TRUNC;

/// Domains whose seqpacket sockets drop what a receive has no room for.
pub(super) const MESSAGE_DOMAINS: [c_int; 2] = [libc::AF_UNIX, libc::AF_BLUETOOTH];

pub(super) const NOREPLACE: MapFlags = MapFlags::MAP_FIXED_NOREPLACE;
pub(super) const NORESERVE: MapFlags = MapFlags::MAP_NORESERVE;
pub(super) const DONTFORK: MmapAdvise = MmapAdvise::MADV_DONTFORK;
pub(super) const DONTDUMP: MmapAdvise = MmapAdvise::MADV_DONTDUMP;
pub(super) const HUGEPAGE: MmapAdvise = MmapAdvise::MADV_HUGEPAGE;

/// The advice with which the kernel takes the memory of an anonymous range back.
pub(super) const DISCARD: MmapAdvise = MmapAdvise::MADV_DONTNEED;

/// A clock that is up to 10 ms behind, at a quarter of the cost.
pub(super) const COARSE: ClockId = ClockId::CLOCK_MONOTONIC_COARSE;

/// The file itself, where the path is empty.
pub(super) const EMPTY_PATH: AtFlags = AtFlags::AT_EMPTY_PATH;

pub(super) const O_DIRECT: OFlag = OFlag::O_DIRECT;
pub(super) const ADDRESS_SPACE: Resource = Resource::RLIMIT_AS;

/// sysinfo(2), or `MemTotal` of proc_meminfo(5): bytes of physical memory. sysconf(3) does not look whether the call
/// fails.
pub(super) fn physical_memory() -> Option<u64> {
    let by_file = || {
        let text = fs::read_to_string("/proc/meminfo").ok()?;
        field(&text, "MemTotal:")?.checked_mul(1024)
    };
    sysinfo().ok().map(|info| info.ram_total()).or_else(by_file)
}

/// sysinfo(2): bytes of memory that nothing uses.
pub(super) fn free_memory() -> Option<u64> {
    sysinfo().ok().map(|info| info.ram_unused())
}

/// memfd_create(2): close-on-exec, empty.
pub(super) fn memfd_create(name: &CStr) -> std::io::Result<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    Ok(memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?)
}

/// fcntl(2) with `F_ADD_SEALS`, against shrinking and growing, and further seals.
pub(super) fn seal_size(memfd: &File) -> nix::Result<()> {
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(memfd, FcntlArg::F_ADD_SEALS(seals)).map(drop)
}

const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// fcntl(2) with `F_ADD_SEALS`, against any change.
pub(super) fn seal(memfd: &File) -> nix::Result<()> {
    fcntl(memfd, FcntlArg::F_ADD_SEALS(SEALS)).map(drop)
}

/// Returns the length of a sealed memfd.
///
/// fcntl(2) with `F_GET_SEALS`, fstatfs(2), fstat(2), and cachestat(2) or lseek(2) with `SEEK_HOLE`, which are linear in
/// the pages.
///
/// # Errors
///
/// `InvalidData` if the file is not a memfd, lacks a seal, or has holes: reading one gives it memory of the reader's, and
/// raises SIGBUS where there is none. So does one of huge pages (`MFD_HUGETLB`), whose holes the kernel does not tell.
pub(super) fn sealed_len(file: &File) -> std::io::Result<usize> {
    let seals = match fcntl(file, FcntlArg::F_GET_SEALS) {
        Ok(seals) => SealFlag::from_bits_retain(seals),
        Err(Errno::EINVAL) => return Err(refused("the descriptor is no memfd: it has no seals")),
        Err(error) => return Err(error.into()),
    };
    if !seals.contains(SEALS) {
        let (seals, needed) = (seals.bits(), SEALS.bits());
        return Err(refused(format!("the file has seals {seals:#x}, {needed:#x} are needed; seal it first")));
    }
    if fstatfs(file)?.filesystem_type() != TMPFS_MAGIC {
        return Err(refused("the memfd has huge pages (MFD_HUGETLB); send one of ordinary pages"));
    }
    let stat = file.metadata()?;
    let (len, memory) = (stat.len(), stat.blocks().saturating_mul(512));
    // The kernel also counts pages behind the end, so that enough of them does not mean that there is no hole.
    if memory < len || !(is_cached(file, len) || first_hole(file, len)? == len) {
        return Err(refused(format!(
            "the memfd has holes: {memory} of its {len} bytes, at most, have memory"
        )));
    }
    usize::try_from(len).map_err(|_| refused(format!("{len} bytes are more than this process can map")))
}

/// cachestat(2), since Linux 6.5: whether all pages of the file are in memory. Cheaper than lseek(2), but what is in
/// swap does not count, and some files are refused.
fn is_cached(file: &File, len: u64) -> bool {
    const CACHESTAT: c_long = 451; // on all targets of this crate; not in `libc` for each
    let (range, mut counts) = ([0, len], [0u64; 5]);
    #[cfg(test)]
    if mock::refuse(Call::CacheStat).is_err() {
        return false;
    }
    let (fd, range, to) = (file.as_raw_fd(), range.as_ptr(), counts.as_mut_ptr());
    // SAFETY: `range` is the struct of offset and length, `counts` memory for that of five counts, both of 64 bits each.
    let done = unsafe { libc::syscall(CACHESTAT, fd, range, to, 0) };
    done == 0 && counts[0] == len.div_ceil(page_size() as u64)
}

/// lseek(2) with `SEEK_HOLE`; the position is set to 0.
fn first_hole(file: &File, len: u64) -> std::io::Result<u64> {
    if len == 0 {
        return Ok(0);
    }
    let hole = lseek64(file, 0, Whence::SeekHole)?;
    lseek64(file, 0, Whence::SeekSet)?;
    Ok(hole.unsigned_abs())
}

fn refused(message: impl Into<String>) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, message.into())
}

/// madvise(2) with `MADV_POPULATE_WRITE`: gives a range memory and page table entries.
///
/// # Safety
///
/// The range is mapped.
pub(super) unsafe fn populate(start: NonNull<c_void>, len: usize) -> nix::Result<()> {
    if cfg!(miri) {
        return Ok(()); // it knows no madvise(2)
    }
    // SAFETY: the advice changes no byte.
    unsafe { madvise(start, len, MmapAdvise::MADV_POPULATE_WRITE) }
}

/// madvise(2) with `MADV_WIPEONFORK`: a child finds zeros in the range.
///
/// # Safety
///
/// The range is mapped, and a child may find zeros there.
pub(super) unsafe fn wipe_on_fork(start: NonNull<c_void>, len: usize) -> nix::Result<()> {
    // SAFETY: promised by the caller.
    unsafe { madvise(start, len, MmapAdvise::MADV_WIPEONFORK) }
}

/// fallocate(2) without a mode, since gVisor supports none.
pub(super) fn allocate(file: &File, offset: off_t, len: off_t) -> nix::Result<()> {
    fallocate(file, FallocateFlags::empty(), offset, len)
}

/// fallocate(2) with `FALLOC_FL_PUNCH_HOLE`.
pub(super) fn punch_hole(file: &File, offset: off_t, len: off_t) -> nix::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, offset, len)
}

/// sync_file_range(2): writes a range to the device, and waits for that.
pub(super) fn sync_file_range(file: &File, offset: i64, len: i64) -> nix::Result<()> {
    let all =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: changes no memory of this process.
    Errno::result(unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, all) }).map(drop)
}

/// posix_fadvise(2) with `POSIX_FADV_DONTNEED`: drops a range from the page cache.
pub(super) fn drop_cached(file: &File, offset: off_t, len: off_t) -> nix::Result<()> {
    posix_fadvise(file, offset, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
}

/// renameat2(2) with `RENAME_NOREPLACE`: gives a file another name. A raw call, because not every libc has it.
///
/// # Errors
///
/// `EEXIST` if there is a file of that name; `EINVAL` where the file system does not know the flag.
pub(super) fn rename_new(from: &Path, to: &Path) -> nix::Result<()> {
    const NOREPLACE: c_uint = 1;
    let renamed = from.with_nix_path(|from| {
        to.with_nix_path(|to| {
            let (from, to, here) = (from.as_ptr(), to.as_ptr(), libc::AT_FDCWD);
            // SAFETY: both are strings that end with a zero, and outlive the call.
            unsafe { libc::syscall(libc::SYS_renameat2, here, from, here, to, NOREPLACE) }
        })
    });
    Errno::result(renamed??).map(drop)
}

/// fstatfs(2): whether the file is one of huge pages.
pub(super) fn is_hugetlbfs(file: &File) -> bool {
    fstatfs(file).is_ok_and(|found| found.filesystem_type() == HUGETLBFS_MAGIC)
}

/// fstatfs(2): whether the bytes of the file are memory: on a tmpfs, a ramfs, or an overlay that keeps them on one.
pub(super) fn is_in_memory(file: &File) -> bool {
    const RAMFS_MAGIC: FsType = FsType(0x8584_58f6_u32 as _); // not in `libc`
    match fstatfs(file).map(|found| found.filesystem_type()) {
        Ok(TMPFS_MAGIC | RAMFS_MAGIC) => true,
        Ok(OVERLAYFS_SUPER_MAGIC) => has_no_extents(file),
        _ => false,
    }
}

/// ioctl(2), `FS_IOC_FIEMAP`: whether the file system has no blocks of which it could tell where they lie. An overlay asks
/// the one that has the file, which may be mounted where this process cannot see it.
fn has_no_extents(file: &File) -> bool {
    /// The struct fiemap of ioctl_fiemap(2), without extents.
    #[repr(C)]
    struct Fiemap {
        start: u64,
        length: u64,
        flags: u32,
        mapped_extents: u32,
        extent_count: u32,
        reserved: u32,
    }
    nix::ioctl_readwrite!(fiemap, b'f', 11, Fiemap);
    let mut first = Fiemap { start: 0, length: 1, flags: 0, mapped_extents: 0, extent_count: 0, reserved: 0 };
    // SAFETY: the call writes to the struct, and with a count of 0 to nothing behind it.
    let told = unsafe { fiemap(file.as_raw_fd(), &raw mut first) };
    told == Err(Errno::EOPNOTSUPP)
}

/// getsockopt(2), `SO_DOMAIN`.
pub(super) fn domain(fd: BorrowedFd<'_>) -> nix::Result<c_int> {
    const LEN: libc::socklen_t = 4; // of a C int
    let (mut domain, mut len): (c_int, _) = (0, LEN);
    let to = (&raw mut domain).cast();
    // SAFETY: `domain` has `len` bytes, and both outlive the call.
    let done =
        unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN, to, &raw mut len) };
    Errno::result(done).map(|_| domain)
}

/// recvmsg(2) with `MSG_PEEK` and `MSG_TRUNC`: bytes of the next message; `None` if it has some and the kernel does not
/// tell how many.
pub(super) fn message_len(fd: BorrowedFd<'_>, flags: c_int) -> nix::Result<Option<usize>> {
    let flags = MsgFlags::from_bits_retain(flags) | MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
    let message = recvmsg::<()>(fd.as_raw_fd(), &mut [], None, flags)?;
    let is_told = message.bytes > 0 || !message.flags.contains(MsgFlags::MSG_TRUNC);
    Ok(is_told.then_some(message.bytes))
}

/// pipe2(2) and tee(2): a copy of the first `len` bytes of a pipe, which `waits` for some.
pub(super) fn tee(fd: BorrowedFd<'_>, len: usize, waits: bool) -> std::io::Result<File> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    let flags = if waits { SpliceFFlags::empty() } else { SpliceFFlags::SPLICE_F_NONBLOCK };
    retry(|| fcntl::tee(fd, &write, len, flags))?;
    Ok(read.into())
}

/// pipe2(2); fcntl(2) with `F_SETPIPE_SZ`: a pipe of so many bytes, where the kernel grants them.
pub(super) fn pipe(bytes: c_int) -> nix::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    // With less it takes more calls.
    let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(bytes));
    Ok((read, write))
}

/// splice(2): moves up to `len` bytes from or to a pipe, to an offset of what is a file.
pub(super) fn splice(
    from: impl AsFd,
    to: impl AsFd,
    offset: Option<&mut i64>,
    len: usize,
) -> nix::Result<usize> {
    fcntl::splice(from, None, to, offset, len, SpliceFFlags::empty())
}

/// sendfile(2), without the SIGPIPE that it raises in this thread: pthread_sigmask(3), sigtimedwait(2).
pub(super) fn sendfile(to: impl AsFd, from: impl AsFd, mut offset: i64, len: usize) -> nix::Result<usize> {
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    let was_pending = is_pending(Signal::SIGPIPE);
    let blocked = pipe.thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let sent = sendfile64(to, from, Some(&mut offset), len);
    if let Ok(before) = blocked {
        if sent == Err(Errno::EPIPE) && !was_pending {
            let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: takes the signal if it is pending; nothing is written to a null pointer.
            while unsafe { libc::sigtimedwait(pipe.as_ref(), ptr::null_mut(), &raw const at_once) } < 0
                && Errno::last() == Errno::EINTR
            {}
        }
        let _ = before.thread_set_mask();
    }
    sent
}

/// sigpending(2)
fn is_pending(signal: Signal) -> bool {
    let mut pending = MaybeUninit::uninit();
    // SAFETY: memory for a set.
    let filled = unsafe { libc::sigpending(pending.as_mut_ptr()) } == 0;
    // SAFETY: looked at only if the call has filled it.
    let pending = filled.then(|| unsafe { pending.assume_init() });
    // SAFETY: a set that the kernel has made.
    pending.is_some_and(|pending| unsafe { SigSet::from_sigset_t_unchecked(pending) }.contains(signal))
}

/// mremap(2): moves a mapping. A raw call, because musl's wrapper drops the address unless it comes with `MREMAP_FIXED`.
///
/// # Safety
///
/// Nothing refers to memory at `from` that mremap(2) unmaps, nor to what it replaces at `to` with `MREMAP_FIXED`.
pub(super) unsafe fn mremap(
    from: NonNull<u8>,
    len: usize,
    how: c_int,
    to: *mut u8,
) -> nix::Result<NonNull<u8>> {
    let flags = c_long::from(libc::MREMAP_MAYMOVE | how);
    // SAFETY: promised by the caller.
    let got = Errno::result(unsafe { libc::syscall(SYS_mremap, from.as_ptr(), len, len, flags, to) })?;
    #[allow(clippy::cast_possible_truncation)] // a long is as wide as an address
    let got = got as usize;
    NonNull::new(ptr::with_exposed_provenance_mut(got)).ok_or(Errno::EINVAL)
}

/// Returns whether a character device is one of memory: `null`, `zero`, `full`, `random`, `urandom`, mem(4).
pub(super) fn is_memory_device(number: u64) -> bool {
    const MEMORY: u32 = 1;
    libc::major(number) == MEMORY && [3, 5, 7, 8, 9].contains(&libc::minor(number))
}

/// Received descriptors are close-on-exec already.
#[inline]
pub(super) fn close_on_exec(_received: &OwnedFd) {}

/// Sends have a flag for that.
#[inline]
pub(super) fn raise_no_sigpipe(_socket: BorrowedFd<'_>) {}
