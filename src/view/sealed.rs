//! A payload in a memfd that no process can change.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;

use crate::sys::seal;

/// Longest payload that is copied into a message, and of which a `Sealed` keeps a copy on the heap instead of a map.
/// `cargo bench --bench thresholds -- --only handover` has the measurement.
pub(super) const COPY_MAX: usize = 4 << 10;

/// Bytes in a memfd of their own that no process can change, to be handed to another one without a copy.
///
/// The memfd has all four seals, `F_SEAL_SHRINK`, `F_SEAL_GROW`, `F_SEAL_WRITE` and `F_SEAL_SEAL`, holds these bytes and
/// no others, and is mapped read only. So no process that has the descriptor can change a byte, nor raise SIGBUS in
/// another one that reads them, whatever it does. Its mode protects nothing: a descriptor that was opened for reading
/// can be opened again for writing, through `/proc/self/fd`.
///
/// * [`View::seal`](crate::View::seal) makes one of a received payload, [`copy_of`](Sealed::copy_of) and
///   [`copy_of_file`](Sealed::copy_of_file) of anything else.
/// * [`send`](Sealed::send) and [`receive`](Sealed::receive) pass it through a Unix socket; [`AsFd`] and
///   [`from_fd`](Sealed::from_fd) through any other channel.
/// * It can be pushed into a [`Rope`](crate::Rope), sent on and handed to further processes, without a copy.
///
/// Cloning it, or converting it into [`Bytes`], shares the memory and is O(1); clones share one descriptor, which is
/// closed with the last of them. A child of fork(2) inherits all of it.
///
/// The memory is freed when no process has the descriptor or a map any more. Until then it counts in the control group
/// of the process that received or copied it, not of those that it was handed to. Payloads of up to 4 KiB are copied by
/// `send` and count in the receiver's.
///
/// On other systems than Linux every function that makes one is an error of kind [`Unsupported`](io::ErrorKind::Unsupported).
///
/// # Examples
///
/// ```
/// # if cfg!(ropewalk_portable) { return Ok(()); }
/// use ropewalk::{Rope, Sealed};
/// use std::os::unix::net::UnixStream;
///
/// let (here, there) = UnixStream::pair()?; // between two processes
/// let mut rope = Rope::for_handover()?;
/// rope.extend_from_slice(&[7; 100_000]); // or received
/// rope.finalize()?.seal()?.send(&here)?;
///
/// let sealed = Sealed::receive(&there)?;
/// assert_eq!(*sealed, [7; 100_000]);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Sealed {
    memfd: Arc<File>,
    /// The bytes of the memfd: a map of it, or a copy of at most [`COPY_MAX`].
    bytes: Bytes,
}

impl Sealed {
    /// Wraps a memfd that was sealed by this process, and its bytes.
    pub(super) fn new(memfd: Arc<File>, bytes: Bytes) -> Sealed {
        Sealed { memfd, bytes }
    }

    /// fcntl(2) with `F_GET_SEALS`, fstatfs(2), fstat(2), cachestat(2) and mmap(2): wraps a sealed memfd of any origin.
    ///
    /// Everything is asked of the kernel and nothing believed of the sender: afterwards no process can change a byte or
    /// raise SIGBUS. O(pages), which the kernel counts; no copy, and no page fault before the first byte is read. Before
    /// Linux 6.5 lseek(2) is used in the place of cachestat(2), and sets the position of the file to 0, which all processes
    /// share: read by pread(2).
    ///
    /// # Errors
    ///
    /// The descriptor is closed then.
    ///
    /// * [`InvalidData`](io::ErrorKind::InvalidData): it is no memfd; it lacks one of the four seals; it has holes; it
    ///   has huge pages (`MFD_HUGETLB`). [`copy_of_file`](Sealed::copy_of_file) copies such a file.
    /// * What the kernel reports: `ENOMEM` where the address space or the number of maps is limited, `EACCES` for a
    ///   descriptor that was opened for writing only.
    ///
    /// # Examples
    ///
    /// ```
    /// # if cfg!(ropewalk_portable) { return Ok(()); }
    /// use ropewalk::Sealed;
    /// use std::os::fd::AsFd;
    ///
    /// let sealed = Sealed::copy_of(b"for another process")?;
    /// let passed_on = sealed.as_fd().try_clone_to_owned()?; // inherited, or received
    /// assert_eq!(*Sealed::from_fd(passed_on)?, *sealed);
    ///
    /// let file = std::fs::File::open("/proc/self/exe")?;
    /// assert!(Sealed::from_fd(file.into()).is_err());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn from_fd(fd: OwnedFd) -> io::Result<Sealed> {
        let file = File::from(fd);
        let bytes = seal::map_sealed(&file)?;
        Ok(Sealed { memfd: Arc::new(file), bytes })
    }

    /// memfd_create(2), pwrite(2) and fcntl(2): copies `bytes` into a memfd and seals it. O(bytes).
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`](io::ErrorKind::OutOfMemory), [`FileTooLarge`](io::ErrorKind::FileTooLarge) beyond
    /// `RLIMIT_FSIZE`, and what the kernel reports, such as EMFILE.
    ///
    /// # Examples
    ///
    /// ```
    /// # if cfg!(ropewalk_portable) { return Ok(()); }
    /// let sealed = ropewalk::Sealed::copy_of(b"some bytes")?;
    /// assert_eq!(*sealed, *b"some bytes");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn copy_of(bytes: &[u8]) -> io::Result<Sealed> {
        Sealed::copy_into(seal::memfd()?, bytes)
    }

    /// Copies `bytes` into an empty memfd and seals it.
    pub(super) fn copy_into(memfd: File, bytes: &[u8]) -> io::Result<Sealed> {
        seal::write(&memfd, bytes)?;
        seal::seal(&memfd, bytes.len())?;
        let bytes =
            if bytes.len() <= COPY_MAX { Bytes::copy_from_slice(bytes) } else { seal::map_sealed(&memfd)? };
        Ok(Sealed { memfd: Arc::new(memfd), bytes })
    }

    /// memfd_create(2), sendfile(2) and fcntl(2): copies the first `len` bytes of a file into a memfd and seals it. O(len).
    ///
    /// For descriptors that [`from_fd`](Sealed::from_fd) refuses: the file is not mapped, so whatever other processes do
    /// to it meanwhile, the copy has some bytes that it had, or the call is an error. Its position stays.
    ///
    /// # Errors
    ///
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the file has fewer bytes; as for [`copy_of`](Sealed::copy_of);
    /// and `EINVAL` for what is not a file.
    ///
    /// # Examples
    ///
    /// ```
    /// # if cfg!(ropewalk_portable) { return Ok(()); }
    /// let program = std::fs::File::open("/proc/self/exe")?;
    /// let sealed = ropewalk::Sealed::copy_of_file(&program, 4)?;
    /// assert_eq!(*sealed, *b"\x7fELF");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn copy_of_file(file: impl AsFd, len: usize) -> io::Result<Sealed> {
        let memfd = seal::memfd()?;
        seal::copy(&memfd, file.as_fd(), len)?;
        seal::seal(&memfd, len)?;
        Sealed::from_fd(memfd.into())
    }
}

impl AsFd for Sealed {
    /// Returns the memfd, close-on-exec. It is open as long as the value or a clone of it lives.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

impl Deref for Sealed {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for Sealed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed").field("len", &self.bytes.len()).field("memfd", &self.memfd.as_fd()).finish()
    }
}

impl From<Sealed> for Bytes {
    /// Converts without a copy. The descriptor is closed if it is the last clone's.
    fn from(sealed: Sealed) -> Bytes {
        sealed.bytes
    }
}
