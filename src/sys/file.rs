//! The calls on files: one without a name for a pool to spill to, its pages in the page cache, and its way to a socket.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;

use super::io::within_offer;
use super::iovec::MAX_BYTES;
use super::memory::{file_size_limit, to_off};
#[cfg(test)]
use super::mock::{self, Call};
use super::platform::{self, EMPTY_PATH, O_DIRECT, O_TMPFILE, copy_file_range};
use super::pressure;
use super::retry;
use super::{direct_block, errno, is_unsupported, needs_alignment};

/// Bytes whose multiples `O_DIRECT` takes, on most devices.
const BLOCK: usize = 4 << 10;

/// Bytes that are read at a time where they cannot be read to where they belong.
const BOUNCE: usize = 256 << 10;

/// Bytes that are written at a time to a file in memory: each step asks for memory first, since a full control group kills.
const STEP: usize = 2 << 20;

/// A file without a name, or with a random one until it gets another.
#[derive(Debug)]
pub(crate) struct Unnamed {
    pub(crate) file: File,
    /// Its name, where the file system knows no `O_TMPFILE`.
    path: Option<PathBuf>,
}

impl Unnamed {
    /// open(2) with `O_TMPFILE`; where that is not supported a new file with a name of its own.
    ///
    /// # Errors
    ///
    /// What the kernel reports of the directory.
    pub(crate) fn create(directory: &Path, mode: u32) -> io::Result<Unnamed> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(mode);
        #[cfg(test)]
        let refused = mock::refuse(Call::TmpFile);
        #[cfg(not(test))]
        let refused = Ok::<(), Errno>(());
        let unnamed = match refused {
            Ok(()) => options.clone().custom_flags(O_TMPFILE).open(directory),
            Err(error) => Err(error.into()),
        };
        match unnamed {
            Ok(file) => Ok(Unnamed { file, path: None }),
            // Joined with a name, an empty path would be the working directory.
            Err(error) if is_without_tmpfile(&error) && !directory.as_os_str().is_empty() => {
                options.create_new(true);
                create_new(directory, |path| options.open(path))
                    .map(|(file, path)| Unnamed { file, path: Some(path) })
            }
            Err(error) => Err(error),
        }
    }

    /// unlink(2): the file goes when the last descriptor and mapping of it does.
    pub(crate) fn into_file(mut self) -> io::Result<File> {
        self.unlink()?;
        self.file.try_clone()
    }

    /// linkat(2), or renameat2(2) of a file that has a name: gives the file its own. Never replaces another.
    pub(crate) fn link(&mut self, path: &Path) -> io::Result<()> {
        let Some(hidden) = &self.path else { return link(&self.file, path) };
        match rename_new(hidden, path) {
            Ok(()) => self.path = None,
            // Some file systems, such as that of NFS, do not know the flag; others, such as vfat, have no links.
            Err(error) if is_unsupported(error) => {
                #[cfg(test)]
                mock::refuse(Call::Link)?;
                fs::hard_link(hidden, path)?;
                self.unlink()?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn unlink(&mut self) -> io::Result<()> {
        self.path.take().map_or(Ok(()), fs::remove_file)
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        // Nothing can be done about a name that stays.
        let _ = self.unlink();
    }
}

/// renameat2(2): gives a file another name. Never replaces another.
fn rename_new(from: &Path, to: &Path) -> nix::Result<()> {
    #[cfg(test)]
    mock::refuse(Call::Rename)?;
    platform::rename_new(from, to)
}

/// linkat(2): gives a file without a name one. Never replaces another.
///
/// # Errors
///
/// `ENOENT` if it has had a name before; `EXDEV` for a name on another file system.
pub(crate) fn link(file: &File, path: &Path) -> io::Result<()> {
    let call = |directory, from: &Path, flags| {
        retry(|| {
            #[cfg(test)]
            mock::refuse(Call::Link)?;
            linkat(directory, from, AT_FDCWD, path, flags)
        })
    };
    match call(AT_FDCWD, &path_of(file), AtFlags::AT_SYMLINK_FOLLOW) {
        // Without `/proc`. Before Linux 6.10 this needs `CAP_DAC_READ_SEARCH`.
        Err(error) if errno(&error) == Errno::ENOENT => call(file.as_fd(), Path::new(""), EMPTY_PATH),
        linked => linked,
    }
}

/// A path of an open file, which may have no name.
fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// `EISDIR` and `ENOENT` come from a kernel that does not know the flag.
fn is_without_tmpfile(error: &io::Error) -> bool {
    matches!(errno(error), Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL | Errno::ENOENT)
}

/// A file of a name that no other has.
fn create_new(directory: &Path, open: impl Fn(&Path) -> io::Result<File>) -> io::Result<(File, PathBuf)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!(".ropewalk-{}-{count}", std::process::id()));
        match open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            opened => return opened.map(|file| (file, path)),
        }
    }
}

/// pwrite(2) of all `bytes`. The file may have been written in part when it fails.
///
/// # Errors
///
/// `EFBIG` beyond `RLIMIT_FSIZE`, where the kernel would raise SIGXFSZ; `OutOfMemory` for a file in memory that might end in
/// a kill; else what the kernel reports, such as `ENOSPC` and `EDQUOT`.
pub(crate) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    check_size(offset, bytes.len())?;
    #[cfg(test)]
    mock::refuse(Call::WriteFile)?;
    if !platform::is_in_memory(file) {
        return file.write_all_at(bytes, offset);
    }
    for (part, at) in bytes.chunks(STEP).zip((offset..).step_by(STEP)) {
        let _admission = pressure::admit(part.len() as u64)?;
        file.write_all_at(part, at)?;
    }
    Ok(())
}

/// open(2) with `O_DIRECT` of a file that is open: what is written to it does not go through the page cache. `None` where
/// the file system or a sandbox without `/proc` does not allow it.
pub(crate) fn open_direct(file: &File) -> Option<File> {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(O_DIRECT.bits()).open(path_of(file)).ok()
}

/// pwrite(2) of all `bytes`: of whole blocks to `direct`, which is the same file with `O_DIRECT`, from memory to the device
/// without a copy; of the rest, and where the device has larger blocks, through the page cache.
///
/// # Errors
///
/// As for [`write_all_at`].
pub(crate) fn write_direct_at(file: &File, direct: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let (blocks, rest) = bytes.split_at(bytes.len() / BLOCK * BLOCK);
    match write_all_at(direct, blocks, offset) {
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => write_all_at(file, bytes, offset),
        Ok(()) if !rest.is_empty() => write_all_at(file, rest, offset + blocks.len() as u64),
        written => written,
    }
}

/// Refuses what the kernel would raise SIGXFSZ for.
pub(super) fn check_size(offset: u64, len: usize) -> io::Result<()> {
    if offset.saturating_add(len as u64) <= file_size_limit() {
        return Ok(());
    }
    let message = format!(
        "a file of {} bytes is more than RLIMIT_FSIZE allows, {}; raise it",
        offset.saturating_add(len as u64),
        file_size_limit()
    );
    Err(io::Error::new(io::ErrorKind::FileTooLarge, message))
}

/// sync_file_range(2) until the bytes are on the device, then posix_fadvise(2) with `POSIX_FADV_DONTNEED`: they are in the
/// page cache no longer, where they would count for the control group. Says nothing of metadata.
pub(crate) fn write_back(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let (from, bytes) = (to_off64(offset)?, to_off64(len)?);
    let synced = retry(|| platform::sync_file_range(file, from, bytes));
    match synced {
        // Not a file system that has anything to write back.
        Err(error) if is_unsupported(errno(&error)) => file.sync_data()?,
        synced => synced?,
    }
    // Advice only, with offsets of 32 bits where `off_t` has them.
    if let (Ok(from), Ok(bytes)) = (to_off(offset), to_off(len)) {
        let _ = platform::drop_cached(file, from, bytes);
    }
    Ok(())
}

/// fstatfs(2): whether the file is one of hugetlbfs, which has no write(2).
pub(crate) fn is_hugetlbfs(file: &File) -> bool {
    platform::is_hugetlbfs(file)
}

/// fstat(2): bytes of a regular file.
///
/// # Errors
///
/// `InvalidInput` for a pipe, a socket, a device or a directory.
pub(crate) fn regular_len(file: &File) -> io::Result<u64> {
    let found = file.metadata()?;
    if found.is_file() {
        return Ok(found.len());
    }
    let message = format!("not a regular file (mode {:o}): only files can be mapped and sent", found.mode());
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

/// copy_file_range(2), or pread(2) and pwrite(2) where it is not supported: copies all `len` bytes to the end of `to`,
/// which has `at` bytes. A file system that can shares the blocks.
///
/// # Errors
///
/// `UnexpectedEof` if `from` has become shorter.
pub(crate) fn copy_all(from: &File, offset: u64, len: usize, to: &File, at: u64) -> io::Result<()> {
    check_size(at, len)?;
    let in_memory = platform::is_in_memory(to);
    let step = if in_memory { STEP } else { MAX_BYTES };
    let mut done = 0;
    while done < len {
        let (mut source, mut target) = (to_off64(offset + done as u64)?, to_off64(at + done as u64)?);
        let want = (len - done).min(step);
        let _admission = in_memory.then(|| pressure::admit(want as u64)).transpose()?;
        match retry(|| copy_file_range(from, Some(&mut source), to, Some(&mut target), want)) {
            Ok(0) => return Err(shrunk(offset + done as u64)),
            Ok(count) => done += count,
            Err(error) if is_without_copy(&error) => return copy_through(from, offset, len, to, at, done),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Copies through memory what copy_file_range(2) does not.
fn copy_through(from: &File, offset: u64, len: usize, to: &File, at: u64, done: usize) -> io::Result<()> {
    let mut buffer = vec![0; (len - done).min(BOUNCE)];
    let mut done = done;
    while done < len {
        let part = (len - done).min(buffer.len());
        read_exact_at(from, &mut buffer[..part], offset + done as u64)?;
        write_all_at(to, &buffer[..part], at + done as u64)?;
        done += part;
    }
    Ok(())
}

/// pread(2) of all of `into`. Where the file is open with `O_DIRECT`, and what is asked for begins or ends inside a block, by
/// whole blocks that are copied.
///
/// # Errors
///
/// What pread(2) reports; `UnexpectedEof` if the file has become shorter.
pub(crate) fn read_exact_at(file: &File, into: &mut [u8], offset: u64) -> io::Result<()> {
    match file.read_exact_at(into, offset) {
        // That of the standard library says nothing of the file.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(shrunk(offset + into.len() as u64 - 1));
        }
        Err(error) if needs_alignment(file.as_fd(), &error) => {}
        done => return done,
    }
    let block = direct_block(file.as_fd())?;
    let mut memory = vec![0; into.len().min(BOUNCE).next_multiple_of(block) + 2 * block];
    let start = memory.as_ptr().align_offset(block);
    let whole = memory.len() / block * block - block;
    let blocks = &mut memory[start..start + whole];
    let mut done = 0;
    while done < into.len() {
        let at = offset + done as u64;
        let before = usize::try_from(at % block as u64).map_err(io::Error::other)?;
        let count = match file.read_at(blocks, at - before as u64) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count?.saturating_sub(before).min(into.len() - done),
        };
        if count == 0 {
            return Err(shrunk(at));
        }
        into[done..done + count].copy_from_slice(&blocks[before..before + count]);
        done += count;
    }
    Ok(())
}

/// Between file systems before Linux 5.3, and of file systems that do not know it.
fn is_without_copy(error: &io::Error) -> bool {
    errno(error) == Errno::EXDEV || is_unsupported(errno(error))
}

/// sendfile(2): sends up to `len` bytes of the file; `None` if the kernel does not do so for this descriptor. Raises no
/// SIGPIPE.
///
/// # Errors
///
/// `UnexpectedEof` if the file has become shorter, so that there is nothing to send.
pub(crate) fn sendfile(
    fd: BorrowedFd<'_>,
    file: &File,
    offset: u64,
    len: usize,
) -> io::Result<Option<usize>> {
    let offer = len.min(MAX_BYTES);
    match retry(|| platform::sendfile(fd, file, to_off64(offset)?, offer)) {
        Ok(0) => Err(shrunk(offset)),
        Ok(count) => within_offer(count, offer, "sendfile").map(Some),
        Err(error) if is_unsupported(errno(&error)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// fstat(2): how many of the `len` bytes from `offset` on the file still has.
///
/// # Errors
///
/// `UnexpectedEof` if it has none of them.
pub(crate) fn left(file: &File, offset: u64, len: usize) -> io::Result<usize> {
    let left = file.metadata()?.len().saturating_sub(offset);
    match usize::try_from(left).unwrap_or(usize::MAX).min(len) {
        0 if len > 0 => Err(shrunk(offset)),
        left => Ok(left),
    }
}

/// An offset of the calls that take 64 bits on any target.
fn to_off64(offset: u64) -> nix::Result<i64> {
    i64::try_from(offset).map_err(|_| Errno::EFBIG)
}

pub(crate) fn shrunk(offset: u64) -> io::Error {
    let message = format!("the file ends before byte {offset}, which the rope holds: it was made shorter");
    io::Error::new(io::ErrorKind::UnexpectedEof, message)
}
