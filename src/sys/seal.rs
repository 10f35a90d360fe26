//! Memfds that no process can change any more: `F_ADD_SEALS`, and what has to be known of one that was received.
//!
//! | seal | without it a process that has the memfd could |
//! |---|---|
//! | `F_SEAL_WRITE` | change bytes, or punch a hole |
//! | `F_SEAL_SHRINK` | cut the file, so that reading a map raises SIGBUS |
//! | `F_SEAL_GROW` | change the length |
//! | `F_SEAL_SEAL` | nothing: no seal can be removed, but files outside of memfds have this one only |
//!
//! The mode of the descriptor protects nothing: it can be opened again through `/proc/self/fd`, for writing.
//!
//! Sealed files are mapped privately. Until Linux 6.6, and from 6.12.0 to 6.12.8, a shared map of a write-sealed file is
//! refused, even a read-only one. Of pages that cannot change, both show the same.
#![allow(unsafe_code)] // a map

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use bytes::Bytes;
use memmap2::{Advice, MmapOptions};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::{Whence, lseek64};

use super::io::retry;
use super::memory;
#[cfg(test)]
use super::mock::{self, Call};
use super::peek::{is_refused, option};
use super::pressure;

/// Bytes that are given memory at a time.
const STEP: usize = 2 << 20;

/// Bytes by which a message has to be shorter than half of the send buffer for the kernel to make one packet of it.
const PACKET_OVERHEAD: usize = 64;

const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// memfd_create(2): close-on-exec, empty, without seals.
pub(crate) fn memfd() -> io::Result<File> {
    Ok(memory::unsealed_memfd(0)?.0)
}

/// ftruncate(2), then fcntl(2) with `F_ADD_SEALS`: from now on no process can change the file. Linear in its pages, all of
/// which the kernel looks at.
///
/// # Errors
///
/// `ResourceBusy` (EBUSY) while a shared, writable map of the file exists or the kernel works on its pages for a call
/// that is under way. The kernel waits up to 0.2 s for such calls.
pub(crate) fn seal(file: &File, len: usize) -> io::Result<()> {
    #[cfg(test)]
    mock::refuse(Call::Resize)?;
    file.set_len(len as u64)?;
    #[cfg(test)]
    mock::refuse(Call::Seal).map_err(not_sealed)?;
    fcntl(file, FcntlArg::F_ADD_SEALS(SEALS)).map_err(not_sealed)?;
    Ok(())
}

fn not_sealed(error: Errno) -> io::Error {
    if error != Errno::EBUSY {
        return error.into();
    }
    let message = "the memfd cannot be sealed while it is mapped for writing or the kernel works on its pages (EBUSY); \
                   try again when splice, io_uring or other processes are done with it";
    io::Error::new(io::ErrorKind::ResourceBusy, message)
}

/// mmap(2): all bytes of a memfd that no process can change.
///
/// # Errors
///
/// `InvalidData` if it is not one: see [`check`]. What mmap(2) reports.
pub(crate) fn map_sealed(file: &File) -> io::Result<Bytes> {
    let len = check(file)?;
    // SAFETY: all four seals are set, so no process writes to the file or cuts it; all of its pages have memory.
    unsafe { map(file, len) }
}

/// mmap(2), private and read only. Left out of core dumps; a child of fork(2) inherits it.
///
/// # Safety
///
/// The file has `len` bytes, and the first `len` stay unchanged as long as the map lives.
pub(crate) unsafe fn map(file: &File, len: usize) -> io::Result<Bytes> {
    if len == 0 {
        return Ok(Bytes::new());
    }
    #[cfg(test)]
    mock::refuse(Call::Map)?;
    // SAFETY: promised by the caller.
    let map = unsafe { MmapOptions::new().len(len).map_copy_read_only(file) }.map_err(memory::not_mapped)?;
    // Failure only makes core dumps larger.
    let _ = map.advise(Advice::DontDump);
    Ok(Bytes::from_owner(map))
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
fn check(file: &File) -> io::Result<usize> {
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
    const CACHESTAT: libc::c_long = 451; // on all targets of this crate; not in `libc` for each
    let (range, mut counts) = ([0, len], [0u64; 5]);
    #[cfg(test)]
    if mock::refuse(Call::CacheStat).is_err() {
        return false;
    }
    let (fd, range, to) = (file.as_raw_fd(), range.as_ptr(), counts.as_mut_ptr());
    // SAFETY: `range` is the struct of offset and length, `counts` memory for that of five counts, both of 64 bits each.
    let done = unsafe { libc::syscall(CACHESTAT, fd, range, to, 0) };
    done == 0 && counts[0] == len.div_ceil(memory::page_size() as u64)
}

/// lseek(2) with `SEEK_HOLE`; the position is set to 0.
fn first_hole(file: &File, len: u64) -> io::Result<u64> {
    if len == 0 {
        return Ok(0);
    }
    let hole = lseek64(file, 0, Whence::SeekHole)?;
    lseek64(file, 0, Whence::SeekSet)?;
    Ok(hole.unsigned_abs())
}

fn refused(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

/// fallocate(2), where the kernel has it: gives the empty file memory for `len` bytes, so that writing them cannot fail.
pub(crate) fn allocate(file: &File, len: usize) -> io::Result<()> {
    check_file_size(len)?;
    let _admission = pressure::admit(len as u64)?;
    match memory::allocate(file, 0, len as u64) {
        Err(error) if !super::is_unsupported(error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// pwrite(2) until all of `bytes` are in the file.
pub(crate) fn write(file: &File, bytes: &[u8]) -> io::Result<()> {
    in_steps(bytes.len(), |offset, len| {
        file.write_all_at(&bytes[offset..offset + len], offset as u64)?;
        Ok(len)
    })
}

/// sendfile(2) until the file has the first `len` bytes of `from`, whose position stays.
///
/// # Errors
///
/// `UnexpectedEof` if it has fewer.
pub(crate) fn copy(file: &File, from: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    in_steps(len, |offset, most| {
        let mut offset = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let count = retry(|| sendfile64(file, from, Some(&mut offset), most))?;
        if count == 0 {
            let message = format!("the file ends at byte {offset}, {len} were requested");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        Ok(count)
    })?;
    lseek64(file, 0, Whence::SeekSet)?;
    Ok(())
}

/// Asks for memory before each step, and lets `step` fill the bytes from an offset on, at most so many.
fn in_steps(len: usize, mut step: impl FnMut(usize, usize) -> io::Result<usize>) -> io::Result<()> {
    check_file_size(len)?;
    let mut done = 0;
    while done < len {
        let next = STEP.min(len - done);
        let _admission = pressure::admit(next as u64)?;
        done += step(done, next)?;
    }
    Ok(())
}

/// Beyond `RLIMIT_FSIZE` the kernel would raise SIGXFSZ.
fn check_file_size(len: usize) -> io::Result<()> {
    let limit = memory::file_size_limit();
    if len as u64 <= limit {
        return Ok(());
    }
    let message = format!("{len} bytes are more than RLIMIT_FSIZE allows a file, {limit}; raise it");
    Err(io::Error::new(io::ErrorKind::FileTooLarge, message))
}

/// recv(2) with `MSG_PEEK`: the first bytes of the next message. Waits for one unless the socket is non-blocking.
pub(crate) fn peek_message(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    retry(|| recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_PEEK))
}

/// getsockopt(2), `SO_DOMAIN`.
///
/// # Errors
///
/// `InvalidInput` if it is no Unix socket, since TCP drops descriptors without an error; what getsockopt(2) reports where
/// a sandbox forbids it.
pub(crate) fn check_unix(fd: BorrowedFd<'_>) -> io::Result<()> {
    match option(fd, libc::SO_DOMAIN) {
        Ok(libc::AF_UNIX) => return Ok(()),
        Err(error) if error != Errno::ENOTSOCK && is_refused(error) => return Err(error.into()),
        _ => {}
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "a sealed payload is sent through a Unix socket only"))
}

/// getsockopt(2), `SO_SNDBUF`: whether a Unix socket takes a message of `len` bytes, at most 16 KiB, whole or not at
/// all, because the kernel makes one packet of it.
pub(crate) fn is_one_packet(fd: BorrowedFd<'_>, len: usize) -> bool {
    let queue = option(fd, libc::SO_SNDBUF).ok().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
    len + PACKET_OVERHEAD <= queue / 2
}
