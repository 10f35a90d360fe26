//! What systems other than Linux get: the calls of `linux.rs`, implemented by others that all of these systems have, or
//! refused. `mod.rs` chooses one of the two files.
//!
//! | on Linux | here |
//! |---|---|
//! | memfd, its seals, pages mapped a second time | refused: an arena is anonymous, a view borrows or copies, nothing is sealed |
//! | `MADV_POPULATE_WRITE`, fallocate(2) | refused: a page takes a page fault when it is first touched |
//! | `MADV_DONTNEED` | `MADV_FREE`: the kernel takes the memory when it needs some |
//! | `MADV_DONTFORK`, `MADV_WIPEONFORK` | a child of fork(2) has a copy of the pages, which it does not use; getpid(2) tells |
//! | control groups, available memory, PSI | files that are not there |
//! | `O_TMPFILE` | a file with a name of its own until it gets another |
//! | renameat2(2) with `RENAME_NOREPLACE` | refused: such a file gets its name by link(2) |
//! | sendfile(2), copy_file_range(2) | refused: bytes of files are sent from their mapping, and copied through memory |
//! | recv(2) with `MSG_TRUNC` | recvmsg(2) with `MSG_PEEK`, with as much memory as the message needs |
//! | tee(2) | no pipe has packets; one that has no writer any more hangs up, which poll(2) tells |
//!
//! Most of these are also what an old Linux, or a sandbox, refuses, so they have a substitute beside the call.
#![allow(unsafe_code)] // declared so, as on Linux

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc::{self, c_int, c_void, off_t};
use nix::sys::mman::{MapFlags, MmapAdvise};
use nix::sys::resource::Resource;
use nix::sys::socket::{SockaddrLike, SockaddrStorage, getsockname};
use nix::time::ClockId;

use super::{UNSUPPORTED, need_linux, page_size};

pub(super) use libc::preadv as preadv64;
#[cfg(not(target_vendor = "apple"))]
pub(super) use libc::{MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, POLLRDHUP};
#[cfg(target_os = "linux")]
pub(super) use libc::{MSG_ERRQUEUE, MSG_ZEROCOPY};

#[cfg(target_vendor = "apple")]
pub(super) const MSG_CMSG_CLOEXEC: c_int = 0; // see `close_on_exec`
#[cfg(target_vendor = "apple")]
pub(super) const MSG_NOSIGNAL: c_int = 0; // see `raise_no_sigpipe`
#[cfg(target_vendor = "apple")]
pub(super) const POLLRDHUP: libc::c_short = libc::POLLHUP;

#[cfg(not(target_os = "linux"))]
pub(super) const MSG_ERRQUEUE: c_int = 0;
#[cfg(not(target_os = "linux"))]
pub(super) const MSG_ZEROCOPY: c_int = 0;
pub(super) const MSG_PROBE: c_int = if cfg!(target_os = "linux") { 0x10 } else { 0 };
pub(super) const MSG_TELL_LEN: c_int = 0;
pub(super) const MESSAGE_DOMAINS: [c_int; 1] = [libc::AF_UNIX];

/// Elsewhere the number is that of a timestamp.
pub(super) const SCM_PIDFD: c_int = if cfg!(target_os = "linux") { 4 } else { -1 };

// No datagrams are merged.
pub(super) const SOL_UDP: c_int = -1;
pub(super) const UDP_GRO: c_int = -1;

// What changes nothing.
pub(super) const MREMAP_DONTUNMAP: c_int = 0;
pub(super) const MREMAP_FIXED: c_int = 0;
pub(super) const NOREPLACE: MapFlags = MapFlags::empty();
pub(super) const DONTFORK: MmapAdvise = MmapAdvise::MADV_NORMAL;
pub(super) const DONTDUMP: MmapAdvise = MmapAdvise::MADV_NORMAL;
pub(super) const HUGEPAGE: MmapAdvise = MmapAdvise::MADV_NORMAL;

pub(super) const DISCARD: MmapAdvise = MmapAdvise::MADV_FREE;
pub(super) const COARSE: ClockId = ClockId::CLOCK_MONOTONIC;

#[cfg(not(target_os = "freebsd"))]
pub(super) const ADDRESS_SPACE: Resource = Resource::RLIMIT_AS;
#[cfg(target_os = "freebsd")]
pub(super) const ADDRESS_SPACE: Resource = Resource::RLIMIT_VMEM;

#[cfg(not(target_os = "freebsd"))]
pub(super) const NORESERVE: MapFlags = MapFlags::MAP_NORESERVE;
#[cfg(target_os = "freebsd")]
pub(super) const NORESERVE: MapFlags = MapFlags::empty(); // the flag is refused

/// Files have names.
pub(super) const EMPTY_PATH: AtFlags = AtFlags::empty();

#[cfg(not(target_vendor = "apple"))]
pub(super) const O_DIRECT: OFlag = OFlag::O_DIRECT;
#[cfg(target_vendor = "apple")]
pub(super) const O_DIRECT: OFlag = OFlag::empty();

/// Opened for writing, a directory is `EISDIR`, as before Linux 3.11; and a file is `ENOTDIR`, where it would be written to.
pub(super) const O_TMPFILE: c_int = libc::O_DIRECTORY;

/// sysconf(3), `_SC_PHYS_PAGES`.
pub(super) fn physical_memory() -> Option<u64> {
    // SAFETY: touches no memory of ours.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    u64::try_from(pages).ok()?.checked_mul(page_size() as u64)
}

/// Not asked for.
pub(super) fn free_memory() -> Option<u64> {
    None
}

/// Declares calls that are refused.
macro_rules! refused {
    ($($name:ident($($of:ty),*) -> $result:ty;)*) => {$(
        pub(super) fn $name($(_: $of),*) -> $result {
            Err(UNSUPPORTED.into())
        }
    )*};
}

refused! {
    memfd_create(&CStr) -> io::Result<OwnedFd>;
    seal_size(&File) -> nix::Result<()>;
    seal(&File) -> nix::Result<()>;
    allocate(&File, off_t, off_t) -> nix::Result<()>;
    punch_hole(&File, off_t, off_t) -> nix::Result<()>;
    rename_new(&Path, &Path) -> nix::Result<()>;
    sync_file_range(&File, i64, i64) -> nix::Result<()>;
    drop_cached(&File, off_t, off_t) -> nix::Result<()>;
    copy_file_range(&File, Option<&mut i64>, &File, Option<&mut i64>, usize) -> nix::Result<usize>;
    sendfile(impl AsFd, impl AsFd, i64, usize) -> nix::Result<usize>;
    splice(impl AsFd, impl AsFd, Option<&mut i64>, usize) -> nix::Result<usize>;
    tee(BorrowedFd<'_>, usize, bool) -> io::Result<File>;
    pipe(c_int) -> nix::Result<(OwnedFd, OwnedFd)>;
}

pub(super) fn is_in_memory(_: &File) -> bool {
    false
}

pub(super) fn is_hugetlbfs(_: &File) -> bool {
    false
}

pub(super) fn sealed_len(_: &File) -> io::Result<usize> {
    need_linux("sealed memfds").map(|()| 0)
}

pub(super) unsafe fn populate(_: NonNull<c_void>, _: usize) -> nix::Result<()> {
    Err(UNSUPPORTED)
}

pub(super) unsafe fn wipe_on_fork(_: NonNull<c_void>, _: usize) -> nix::Result<()> {
    Err(UNSUPPORTED)
}

pub(super) unsafe fn mremap(_: NonNull<u8>, _: usize, _: c_int, _: *mut u8) -> nix::Result<NonNull<u8>> {
    Err(UNSUPPORTED)
}

/// getsockname(2), whose first field is the domain.
pub(super) fn domain(fd: BorrowedFd<'_>) -> nix::Result<c_int> {
    let address: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    address.family().map(|family| family as c_int).ok_or(Errno::EAFNOSUPPORT)
}

/// Not told without a copy.
pub(super) fn message_len(_: BorrowedFd<'_>, _: c_int) -> nix::Result<Option<usize>> {
    Ok(None)
}

/// Device numbers differ from system to system, so none is known.
pub(super) fn is_memory_device(_: u64) -> bool {
    false
}

/// fcntl(2) with `FD_CLOEXEC`. Where the receive has no flag for that, a program that forks and executes in between
/// passes the descriptor on.
pub(super) fn close_on_exec(received: &OwnedFd) {
    let _ = fcntl(received, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
}

/// setsockopt(2) with `SO_NOSIGPIPE`, where a send has no flag for that.
pub(super) fn raise_no_sigpipe(_socket: BorrowedFd<'_>) {
    #[cfg(target_vendor = "apple")]
    {
        const LEN: libc::socklen_t = 4; // of a C int
        let on: c_int = 1;
        let (fd, from) = (_socket.as_raw_fd(), (&raw const on).cast());
        // SAFETY: `on` has `LEN` bytes, and outlives the call. What is no socket refuses.
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_NOSIGPIPE, from, LEN) };
    }
}
