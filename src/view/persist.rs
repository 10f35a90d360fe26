//! A view as a file, and reads that report an error where touching a page of a file would be a signal.

use std::io;
use std::path::Path;

use super::View;
use crate::sys::file::{self, Unnamed};
use crate::sys::shown::{self, InFile};

impl View {
    /// pread(2) of what lies in a file, a copy of the rest: copies bytes from `offset` on, as many as `into` takes or the
    /// view has; returns how many. 0 at the end or beyond.
    ///
    /// What was [spilled](crate::PoolOptions::spill), and what comes from a [file](crate::Rope::push_file), is read
    /// without touching the view's pages, so that it takes no page fault, and an I/O error is an error rather than SIGBUS.
    /// O(bytes copied).
    ///
    /// # Errors
    ///
    /// What pread(2) reports; [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the file has become shorter.
    ///
    /// # Examples
    ///
    /// ```
    /// let view = ropewalk::Rope::from("head and body").finalize()?;
    /// let mut body = [0; 8];
    /// assert_eq!(view.read_at(&mut body, 9)?, 4);
    /// assert_eq!(&body[..4], b"body");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let count = into.len().min(self.len() - from);
        shown::copy(&self[from..from + count], &mut into[..count])?;
        Ok(count)
    }

    /// linkat(2): makes the view a file at `path`, of exactly its bytes. Never replaces a file.
    ///
    /// The bytes go to a file without a name in the same directory (`O_TMPFILE`), are synced to the disk, and the file
    /// gets its name last: no part of it is ever seen under that name, not after a crash either. Where the file system
    /// knows no such files, it has another name until then, `.ropewalk-` and a number, which a crash leaves behind.
    ///
    /// What was [spilled](crate::PoolOptions::spill) to the same file system is copied by copy_file_range(2): where that
    /// shares blocks (btrfs, XFS) no byte is copied. The rest is written. Its permissions are those of
    /// [`File::create`](std::fs::File::create).
    ///
    /// Takes as long as the disk: in an event loop, call it through the runtime's blocking pool. To replace a file, persist
    /// under another name and [rename](std::fs::rename). The directory's entry is safe from a power loss once the
    /// directory is synced.
    ///
    /// # Errors
    ///
    /// There is no file at `path` then, or the one that was there.
    ///
    /// * [`AlreadyExists`](io::ErrorKind::AlreadyExists): there is a file.
    /// * [`FileTooLarge`](io::ErrorKind::FileTooLarge): more than `RLIMIT_FSIZE` allows.
    /// * What the kernel reports, such as [`StorageFull`](io::ErrorKind::StorageFull).
    ///
    /// # Examples
    ///
    /// ```
    /// # let directory = tempfile::tempdir()?;
    /// let path = directory.path().join("upload");
    /// ropewalk::Rope::from("all of it").finalize()?.persist(&path)?;
    /// assert_eq!(std::fs::read(&path)?, b"all of it");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn persist(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut unnamed = Unnamed::create(directory, 0o666)?;
        let mut at = 0;
        for (part, in_file) in shown::parts(self) {
            match in_file {
                Some(InFile { file, offset, .. }) => {
                    file::copy_all(&file, offset, part.len(), &unnamed.file, at)?;
                }
                None => file::write_all_at(&unnamed.file, part, at)?,
            }
            at += part.len() as u64;
        }
        unnamed.file.sync_all()?;
        unnamed.link(path)
    }
}
