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
use std::io::{self, Seek};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use bytes::Bytes;
use memmap2::MmapOptions;
use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::madvise;
use nix::sys::socket::{MsgFlags, getsockopt, recv, sockopt};

use super::file::check_size;
#[cfg(test)]
use super::mock::{self, Call};
use super::peek::is_refused;
use super::retry;
use super::{memory, need_linux, platform, pressure};

/// Bytes that are given memory at a time.
const STEP: usize = 2 << 20;

/// Bytes by which a message has to be shorter than half of the send buffer for the kernel to make one packet of it.
const PACKET_OVERHEAD: usize = 64;

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
    platform::seal(file).map_err(not_sealed)
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
/// `InvalidData` if it is not one: see [`platform::sealed_len`]. What mmap(2) reports.
pub(crate) fn map_sealed(file: &File) -> io::Result<Bytes> {
    let len = platform::sealed_len(file)?;
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
    // SAFETY: the advice changes no byte. Failure only makes core dumps larger.
    let _ = unsafe { madvise(NonNull::from(&map[..]).cast(), len, platform::DONTDUMP) };
    Ok(Bytes::from_owner(map))
}

/// fallocate(2), where the kernel has it: gives the empty file memory for `len` bytes, so that writing them cannot fail.
pub(crate) fn allocate(file: &File, len: usize) -> io::Result<()> {
    check_size(0, len)?;
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
pub(crate) fn copy(mut file: &File, from: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    in_steps(len, |offset, most| {
        let offset = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let count = retry(|| platform::sendfile(file, from, offset, most))?;
        if count == 0 {
            let message = format!("the file ends at byte {offset}, {len} were requested");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        Ok(count)
    })?;
    file.rewind()
}

/// Asks for memory before each step, and lets `step` fill the bytes from an offset on, at most so many.
fn in_steps(len: usize, mut step: impl FnMut(usize, usize) -> io::Result<usize>) -> io::Result<()> {
    check_size(0, len)?;
    let mut done = 0;
    while done < len {
        let next = STEP.min(len - done);
        let _admission = pressure::admit(next as u64)?;
        done += step(done, next)?;
    }
    Ok(())
}

/// recv(2) with `MSG_PEEK`: the first bytes of the next message. Waits for one unless the socket is non-blocking.
pub(crate) fn peek_message(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    need_linux("sealed payloads")?;
    retry(|| recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_PEEK))
}

/// getsockopt(2), `SO_DOMAIN`.
///
/// # Errors
///
/// `InvalidInput` if it is no Unix socket, since TCP drops descriptors without an error; what getsockopt(2) reports where
/// a sandbox forbids it.
pub(crate) fn check_unix(fd: BorrowedFd<'_>) -> io::Result<()> {
    match platform::domain(fd) {
        Ok(libc::AF_UNIX) => return Ok(()),
        Err(error) if error != Errno::ENOTSOCK && is_refused(error) => return Err(error.into()),
        _ => {}
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "a sealed payload is sent through a Unix socket only"))
}

/// getsockopt(2), `SO_SNDBUF`: whether a Unix socket takes a message of `len` bytes, at most 16 KiB, whole or not at
/// all, because the kernel makes one packet of it.
pub(crate) fn is_one_packet(fd: BorrowedFd<'_>, len: usize) -> bool {
    let queue = getsockopt(&fd, sockopt::SndBuf).unwrap_or(0);
    len + PACKET_OVERHEAD <= queue / 2
}
