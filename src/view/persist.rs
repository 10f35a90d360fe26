//! A view as a file, and reads that report an error where touching a page of a file would be a signal.

use std::io;
use std::path::Path;

use super::View;
use crate::pool::Pool;
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
    /// What pread(2) reports; [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the file has become shorter;
    /// [`Unsupported`](io::ErrorKind::Unsupported) in a child of fork(2), where the pool's bytes are not mapped.
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
        self.pool.as_ref().map_or(Ok(()), Pool::check_process)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let count = into.len().min(self.len() - from);
        shown::copy(&self[from..from + count], &mut into[..count])?;
        Ok(count)
    }

    /// linkat(2): makes the view a file at `path`, of exactly its bytes. Never replaces a file.
    ///
    /// The bytes are in a file without a name (`O_TMPFILE`), are synced to the disk, and the file gets its name last: no
    /// part of it is ever seen under that name, not after a crash either. A process that is killed leaves nothing. Its
    /// permissions are those of [`File::create`](std::fs::File::create).
    ///
    /// | view | how | cost |
    /// |---|---|---|
    /// | of a [`Rope::for_file`](crate::Rope::for_file), all of what it received and nothing else, on the file system of `path`, the first time | a link: the view's own file gets the name | what is not written yet, at most 16 MiB, and fsync(2); no byte is copied |
    /// | any other | a copy in a file without a name beside `path` | O(bytes): copy_file_range(2) of what lies in files, which shares blocks on btrfs and XFS and copies on ext4; pwrite(2) of the rest |
    ///
    /// After a link the view goes on to show the file: bytes that are written to the file appear in the view, and touching
    /// bytes of a file that has become shorter is SIGBUS, as for [`push_file`](crate::Rope::push_file). A copy is apart.
    ///
    /// Where the file system knows no files without a name, the copy has another one until it is whole, `.ropewalk-` and a
    /// number, which a crash leaves behind. It is renamed by renameat2(2) with `RENAME_NOREPLACE`, as on vfat and exFAT,
    /// which have no links; where that flag is not known, linked. With neither there is no way to a whole file that never
    /// replaces another, and the error is what link(2) reports.
    ///
    /// Waits for the disk: in an event loop, call it through the runtime's blocking pool. To replace a file, persist under
    /// another name in the same directory and [rename](std::fs::rename). The directory's entry is safe from a power loss
    /// once the directory is synced.
    ///
    /// # Errors
    ///
    /// There is no file at `path` then, or the one that was there.
    ///
    /// * [`AlreadyExists`](io::ErrorKind::AlreadyExists): there is a file.
    /// * [`FileTooLarge`](io::ErrorKind::FileTooLarge): more than `RLIMIT_FSIZE` allows.
    /// * [`OutOfMemory`](io::ErrorKind::OutOfMemory): on a tmpfs or ramfs, whose files are memory, also below an overlay, more
    ///   than there is.
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
        if self.pool.as_ref().map_or(Ok(false), |pool| pool.name_file(self, path))? {
            return Ok(());
        }
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
