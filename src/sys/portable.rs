//! What systems other than Linux get: the same names as in `linux.rs`, implemented by calls that all of these systems have,
//! or refused. `mod.rs` chooses one of the two files.
//!
//! | on Linux | here |
//! |---|---|
//! | memfd, its seals, pages mapped a second time | refused: an arena is anonymous, a view borrows or copies, nothing is sealed |
//! | `MADV_POPULATE_WRITE`, fallocate(2) | refused: a page takes a page fault when it is first touched |
//! | `MADV_DONTNEED` | `MADV_FREE`: the kernel takes the memory when it needs some |
//! | `MADV_DONTFORK`, `MADV_WIPEONFORK` | a child of fork(2) has a copy of the pages, which it does not use; getpid(2) tells |
//! | control groups, available memory, PSI | not asked |
//! | `O_TMPFILE` | a file with a name of its own until it gets another |
//! | sendfile(2), copy_file_range(2) | refused: bytes of files are sent from their mapping, and copied through memory |
//! | recv(2) with `MSG_TRUNC` | recvmsg(2) with `MSG_PEEK`, with as much memory as the message needs |
//! | tee(2) | no pipe has packets; one that has no writer any more hangs up, which poll(2) tells |
//!
//! Most of these are also what an old Linux, or a sandbox, refuses, so they have a substitute beside the call.
#![allow(unsafe_code)] // declared so, as on Linux

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc::{self, c_int, c_void, off_t};
use nix::sys::mman::{MapFlags, MmapAdvise};
use nix::sys::resource::Resource;
use nix::sys::socket::{MsgFlags, SockaddrLike, SockaddrStorage, getsockname, recvmsg};
use nix::time::ClockId;

use super::UNSUPPORTED;

#[cfg(not(target_vendor = "apple"))]
pub(super) use libc::{MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, POLLRDHUP};
#[cfg(target_os = "linux")]
pub(super) use libc::{MSG_ERRQUEUE, MSG_ZEROCOPY};
pub(super) use libc::{
    fstat as fstat64, lseek as lseek64, pread as pread64, preadv as preadv64, stat as stat64,
};

#[cfg(target_vendor = "apple")]
pub(super) const MSG_CMSG_CLOEXEC: c_int = 0; // see `close_on_exec`
#[cfg(target_vendor = "apple")]
pub(super) const MSG_NOSIGNAL: c_int = 0; // see `raise_no_sigpipe`
#[cfg(target_vendor = "apple")]
pub(super) const POLLRDHUP: libc::c_short = libc::POLLHUP;

pub(crate) const HAS_MEMFD: bool = false;
pub(super) const HAS_PACKET_PIPES: bool = false;
#[cfg(not(target_os = "linux"))]
pub(super) const MSG_ERRQUEUE: c_int = 0;
#[cfg(not(target_os = "linux"))]
pub(super) const MSG_ZEROCOPY: c_int = 0;
pub(super) const MSG_PROBE: c_int = if cfg!(target_os = "linux") { 0x10 } else { 0 };
pub(super) const MSG_TELL_LEN: c_int = 0;
pub(super) const MESSAGE_DOMAINS: [c_int; 1] = [libc::AF_UNIX];

/// Elsewhere the number is that of a timestamp.
pub(super) const SCM_PIDFD: c_int = if cfg!(target_os = "linux") { 4 } else { -1 };

// What changes nothing.
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

#[cfg(not(target_vendor = "apple"))]
pub(super) const O_DIRECT: OFlag = OFlag::O_DIRECT;
#[cfg(target_vendor = "apple")]
pub(super) const O_DIRECT: OFlag = OFlag::empty();

/// Without a flag, a directory that is opened for writing is `EISDIR`, as before Linux 3.11.
pub(super) const O_TMPFILE: c_int = 0;

/// Says that a pool cannot spill.
pub(crate) fn check_spill() -> io::Result<()> {
    unsupported("a pool has no file here: PoolOptions::spill and Rope::for_file need Linux")
}

/// sysconf(3), `_SC_PHYS_PAGES`.
pub(super) fn physical_memory() -> Option<u64> {
    // SAFETY: touches no memory of ours.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    u64::try_from(pages).ok()?.checked_mul(super::memory::page_size() as u64)
}

/// The system's limit is not asked for.
pub(super) fn committable() -> u64 {
    u64::MAX
}

pub(super) fn memfd_create(_: &CStr) -> io::Result<OwnedFd> {
    unsupported("there is no memfd here: sealing and handing over need Linux")
}

fn unsupported<T>(message: &str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, message))
}

pub(super) fn seal_size(_: &File) -> nix::Result<()> {
    Err(UNSUPPORTED)
}

pub(super) unsafe fn populate(_: NonNull<c_void>, _: usize) -> nix::Result<()> {
    Err(UNSUPPORTED)
}

pub(super) unsafe fn wipe_on_fork(_: NonNull<c_void>, _: usize) -> nix::Result<()> {
    Err(UNSUPPORTED)
}

pub(super) fn allocate(_: &File, _: off_t, _: off_t) -> nix::Result<()> {
    Err(UNSUPPORTED)
}

pub(super) fn punch_hole(_: &File, _: off_t, _: off_t) -> nix::Result<()> {
    Err(UNSUPPORTED)
}

pub(super) fn sync_file_range(_: &File, _: i64, _: i64) -> nix::Result<()> {
    Err(UNSUPPORTED)
}

pub(super) fn drop_cached(_: &File, _: off_t, _: off_t) -> nix::Result<()> {
    Err(UNSUPPORTED)
}

pub(super) fn copy_file_range(
    _: impl AsFd,
    _: Option<&mut i64>,
    _: impl AsFd,
    _: Option<&mut i64>,
    _: usize,
) -> nix::Result<usize> {
    Err(UNSUPPORTED)
}

pub(super) fn sendfile64(_: impl AsFd, _: impl AsFd, _: Option<&mut i64>, _: usize) -> nix::Result<usize> {
    Err(UNSUPPORTED)
}

/// No signal is pending, since nothing was sent.
pub(super) unsafe fn sigtimedwait(
    _: *const libc::sigset_t,
    _: *mut libc::siginfo_t,
    _: *const libc::timespec,
) -> c_int {
    0
}

pub(super) fn tee(_: BorrowedFd<'_>, _: usize, _: bool) -> io::Result<OwnedFd> {
    Err(UNSUPPORTED.into())
}

/// getsockname(2), whose first field is the domain.
pub(super) fn domain(fd: BorrowedFd<'_>) -> Option<c_int> {
    let address: SockaddrStorage = getsockname(fd.as_raw_fd()).ok()?;
    address.family().map(|family| family as c_int)
}

/// recvmsg(2) with `MSG_PEEK`: bytes of the next message, which is copied to see them.
pub(super) fn message_len(fd: BorrowedFd<'_>, flags: c_int) -> nix::Result<usize> {
    let flags = MsgFlags::from_bits_retain(flags) | MsgFlags::MSG_PEEK;
    let mut memory = Vec::new();
    let mut len = 64 << 10;
    loop {
        memory.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
        memory.resize(len, 0);
        let mut iovecs = [IoSliceMut::new(&mut memory)];
        let message = recvmsg::<()>(fd.as_raw_fd(), &mut iovecs, None, flags)?;
        if !message.flags.contains(MsgFlags::MSG_TRUNC) {
            return Ok(message.bytes);
        }
        len *= 2;
    }
}

/// Device numbers differ from system to system, so none is known.
pub(super) fn is_memory_device(_: &stat64) -> bool {
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

/// Bytes of a socket are received into pages.
pub(crate) mod pipe {
    use std::fs::File;
    use std::io;
    use std::os::fd::BorrowedFd;

    pub(crate) enum Pipe {}

    impl Pipe {
        pub(crate) fn new() -> io::Result<Pipe> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn is_refused(&self) -> bool {
            match *self {}
        }

        pub(crate) fn take(&mut self, _from: BorrowedFd<'_>, _len: usize) -> io::Result<Option<usize>> {
            match *self {}
        }

        pub(crate) fn give(&self, _to: &File, _offset: u64, _len: usize) -> usize {
            match *self {}
        }

        pub(crate) fn read(&self, _len: usize) -> io::Result<Vec<u8>> {
            match *self {}
        }
    }
}

/// Available memory is not asked for.
pub(crate) mod pressure {
    use std::io;

    /// Nothing to be dropped.
    pub(crate) struct Admission;

    #[allow(clippy::unnecessary_wraps)] // as on Linux
    pub(crate) fn admit(_bytes: u64) -> io::Result<Admission> {
        Ok(Admission)
    }

    pub(crate) fn memory_limit() -> u64 {
        super::super::memory::physical_memory()
    }
}

/// Memory pressure is not reported.
pub(crate) mod psi {
    use std::io;
    use std::time::Duration;

    pub(crate) enum PressureWatch {}

    impl PressureWatch {
        #[allow(clippy::unnecessary_wraps)] // as on Linux
        pub(crate) fn from_env() -> io::Result<Option<PressureWatch>> {
            Ok(None)
        }

        pub(crate) fn wait(&self, _timeout: Duration) -> io::Result<bool> {
            match *self {}
        }
    }
}

/// Nothing is mapped a second time, so views copy.
pub(crate) mod space {
    use std::fs::File;
    use std::io;
    use std::ptr::NonNull;
    use std::sync::Arc;

    use super::super::shown::InFile;

    pub(crate) const MAP_COST: u64 = 0;

    pub(crate) enum Space {}

    impl Space {
        pub(crate) fn reserve(_len: usize) -> io::Result<Space> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn vacant(_len: usize, _like: usize) -> io::Result<Space> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn push_zeros(&mut self, _len: usize) -> io::Result<()> {
            match *self {}
        }

        pub(crate) fn push_pages(&mut self, _file: &File, _len: usize, _offset: usize) -> io::Result<()> {
            match *self {}
        }

        pub(crate) unsafe fn push_moved(
            &mut self,
            _file: &Arc<File>,
            _len: usize,
            _home: NonNull<u8>,
            _offset: usize,
        ) -> io::Result<()> {
            match *self {}
        }

        pub(crate) fn push_shown(&mut self, _at: InFile, _len: usize) -> io::Result<()> {
            match *self {}
        }

        pub(crate) fn keep_private(&self) -> io::Result<()> {
            match *self {}
        }

        pub(crate) fn give_back(&mut self) -> io::Result<()> {
            match *self {}
        }

        pub(crate) fn at(&self, _offset: usize) -> NonNull<u8> {
            match *self {}
        }
    }
}

/// Without a memfd nothing is sealed, sent or received.
pub(crate) mod seal {
    use std::fs::File;
    use std::io;
    use std::os::fd::BorrowedFd;

    use bytes::Bytes;

    use super::super::memory;

    fn refuse<T>() -> io::Result<T> {
        super::memfd_create(c"").and(Err(io::ErrorKind::Unsupported.into()))
    }

    pub(crate) fn memfd() -> io::Result<File> {
        memory::unsealed_memfd(0).map(|(file, _)| file)
    }

    pub(crate) fn seal(_file: &File, _len: usize) -> io::Result<()> {
        refuse()
    }

    pub(crate) fn map_sealed(_file: &File) -> io::Result<Bytes> {
        refuse()
    }

    pub(crate) unsafe fn map(_file: &File, _len: usize) -> io::Result<Bytes> {
        refuse()
    }

    pub(crate) fn allocate(_file: &File, _len: usize) -> io::Result<()> {
        refuse()
    }

    pub(crate) fn write(_file: &File, _bytes: &[u8]) -> io::Result<()> {
        refuse()
    }

    pub(crate) fn copy(_file: &File, _from: BorrowedFd<'_>, _len: usize) -> io::Result<()> {
        refuse()
    }

    pub(crate) fn peek_message(_fd: BorrowedFd<'_>, _buffer: &mut [u8]) -> io::Result<usize> {
        refuse()
    }

    pub(crate) fn check_unix(_fd: BorrowedFd<'_>) -> io::Result<()> {
        refuse()
    }

    pub(crate) fn is_one_packet(_fd: BorrowedFd<'_>, _len: usize) -> bool {
        false
    }
}
