//! What Linux has and other systems lack or do in another way. `portable.rs` has the same names for them; `mod.rs` chooses
//! one of the two.
#![allow(unsafe_code)] // raw calls, and advice about memory

pub(crate) mod pipe;
pub(crate) mod pressure;
pub(crate) mod psi;
pub(crate) mod seal;
pub(crate) mod space;

use std::ffi::CStr;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use nix::errno::Errno;
use nix::fcntl::{
    FallocateFlags, FcntlArg, OFlag, PosixFadviseAdvice, SealFlag, fallocate, fcntl, posix_fadvise,
};
use nix::libc::{self, c_int, c_void, off_t};
use nix::sys::mman::{MapFlags, MmapAdvise, madvise};
use nix::sys::resource::Resource;
use nix::sys::sysinfo::sysinfo;
use nix::time::ClockId;
use nix::unistd::pipe2;

#[cfg(test)]
use super::mock;
// The modules above know these as their parent's.
use super::{io, is_unsupported, memory, peek, process, shown};

pub(super) use libc::{
    MSG_CMSG_CLOEXEC, MSG_ERRQUEUE, MSG_NOSIGNAL, MSG_ZEROCOPY, O_TMPFILE, POLLRDHUP, fstat64, lseek64,
    pread64, preadv64, sigtimedwait, stat64,
};
pub(super) use nix::fcntl::copy_file_range;
pub(super) use nix::sys::sendfile::sendfile64;

/// An arena is a memfd, which can be mapped twice and sealed.
pub(crate) const HAS_MEMFD: bool = true;

/// A pipe may have packets.
pub(super) const HAS_PACKET_PIPES: bool = true;

/// Since Linux 6.5; not in `libc` for all targets.
pub(super) const SCM_PIDFD: c_int = 4;

/// The flag with which UDP sends nothing and counts the bytes all the same; not in `libc`.
pub(super) const MSG_PROBE: c_int = 0x10;

/// The flag with which a receive tells the length that the message had.
pub(super) const MSG_TELL_LEN: c_int = libc::MSG_TRUNC;

/// Domains whose seqpacket sockets drop what a receive has no room for.
pub(super) const MESSAGE_DOMAINS: [c_int; 2] = [libc::AF_UNIX, libc::AF_BLUETOOTH];

pub(super) const NORESERVE: MapFlags = MapFlags::MAP_NORESERVE;
pub(super) const DONTFORK: MmapAdvise = MmapAdvise::MADV_DONTFORK;
pub(super) const DONTDUMP: MmapAdvise = MmapAdvise::MADV_DONTDUMP;
pub(super) const HUGEPAGE: MmapAdvise = MmapAdvise::MADV_HUGEPAGE;

/// The advice with which the kernel takes the memory of an anonymous range back.
pub(super) const DISCARD: MmapAdvise = MmapAdvise::MADV_DONTNEED;

/// A clock that is up to 10 ms behind, at a quarter of the cost.
pub(super) const COARSE: ClockId = ClockId::CLOCK_MONOTONIC_COARSE;

pub(super) const O_DIRECT: OFlag = OFlag::O_DIRECT;
pub(super) const ADDRESS_SPACE: Resource = Resource::RLIMIT_AS;

/// Returns whether a pool can spill, if its file system makes holes.
#[allow(clippy::unnecessary_wraps)] // elsewhere it cannot
pub(crate) fn check_spill() -> std::io::Result<()> {
    Ok(())
}

/// sysinfo(2), or `MemTotal` of proc_meminfo(5): bytes of physical memory. sysconf(3) does not look whether the call
/// fails.
pub(super) fn physical_memory() -> Option<u64> {
    let by_file = || {
        let text = fs::read_to_string("/proc/meminfo").ok()?;
        pressure::field(&text, "MemTotal:")?.checked_mul(1024)
    };
    sysinfo().ok().map(|info| info.ram_total()).or_else(by_file)
}

/// Bytes that the system lets all processes map, where it never overcommits: `overcommit_memory` 2 of proc_sys_vm(5).
/// `MAP_NORESERVE` has no effect there.
pub(super) fn committable() -> u64 {
    let never = fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim() == "2");
    let left = || {
        let text = fs::read_to_string("/proc/meminfo").ok()?;
        let kib = |name| pressure::field(&text, name);
        Some(kib("CommitLimit:")?.saturating_sub(kib("Committed_AS:")?).saturating_mul(1024))
    };
    if never { left().unwrap_or(u64::MAX) } else { u64::MAX }
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

/// getsockopt(2), `SO_DOMAIN`.
pub(super) fn domain(fd: BorrowedFd<'_>) -> Option<c_int> {
    peek::option(fd, libc::SO_DOMAIN).ok()
}

/// recv(2) with `MSG_PEEK` and `MSG_TRUNC`: bytes of the next message.
pub(super) fn message_len(fd: BorrowedFd<'_>, flags: c_int) -> nix::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_TRUNC | flags;
    // SAFETY: no byte may be written, so the address does not matter.
    Errno::result(unsafe { libc::recv(fd.as_raw_fd(), ptr::null_mut(), 0, flags) }).map(isize::unsigned_abs)
}

/// pipe2(2) and tee(2): a copy of the first `len` bytes of a pipe, which `waits` for some.
pub(super) fn tee(fd: BorrowedFd<'_>, len: usize, waits: bool) -> std::io::Result<OwnedFd> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let flags = if waits { 0 } else { libc::SPLICE_F_NONBLOCK };
    // SAFETY: moves no memory of this process.
    io::retry(|| Errno::result(unsafe { libc::tee(fd.as_raw_fd(), write.as_raw_fd(), len, flags) }))?;
    Ok(read)
}

/// Returns whether a character device is one of memory: `null`, `zero`, `full`, `random`, `urandom`, mem(4).
pub(super) fn is_memory_device(stat: &stat64) -> bool {
    const MEMORY: u32 = 1;
    libc::major(stat.st_rdev) == MEMORY && [3, 5, 7, 8, 9].contains(&libc::minor(stat.st_rdev))
}

/// Received descriptors are close-on-exec already.
#[inline]
pub(super) fn close_on_exec(_received: &OwnedFd) {}

/// Sends have a flag for that.
#[inline]
pub(super) fn raise_no_sigpipe(_socket: BorrowedFd<'_>) {}
