//! A file's range as a segment.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};

use super::Rope;
use crate::sys::file::regular_len;
use crate::sys::memory::not_mapped;
use crate::sys::page_size;
use crate::sys::shown::{self, InFile};

impl Rope {
    /// mmap(2): appends bytes `range` of a file as a segment, without reading them. O(1).
    ///
    /// [`writev_to`](Rope::writev_to) sends them by sendfile(2), to a pipe as by splice(2): no byte is copied through this
    /// process. A cursor that is [read](std::io::Read) reads them by pread(2), and so does
    /// [`View::read_at`](crate::View::read_at). All other accesses, such as [`chunks`](Rope::chunks),
    /// [`segments`](Rope::segments), [`find`](Rope::find) or a [view](Rope::finalize), see the mapped file, of which the
    /// kernel reads a page when it is first touched.
    ///
    /// The file must not change while the rope, or a view or segment of it, is used: bytes that are written to it appear
    /// here, and touching bytes of a file that has become shorter, or that the device fails to read, is SIGBUS. Sending
    /// and reading report an error instead. `Rope::readv_from` takes a copy.
    ///
    /// # Errors
    ///
    /// The rope is as it was.
    ///
    /// * [`InvalidInput`](io::ErrorKind::InvalidInput): not a regular file; a range that starts behind its end or ends
    ///   behind the file's; more bytes than a rope can hold.
    /// * [`PermissionDenied`](io::ErrorKind::PermissionDenied): the file is open for writing only.
    /// * What mmap(2) reports.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::Rope;
    /// use std::fs::File;
    ///
    /// let file = File::open("/proc/self/exe")?;
    /// let len = file.metadata()?.len();
    /// let mut rope = Rope::from("a header, and then ");
    /// rope.push_file(file, 0..len)?;
    /// assert_eq!(rope.len() as u64, 19 + len);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn push_file(&mut self, file: File, range: Range<u64>) -> io::Result<()> {
        let len = check_range(&range, regular_len(&file)?)?;
        if self.len().checked_add(len).is_none() {
            let message = format!("{} and {len} bytes are more than a rope can hold", self.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        if len > 0 {
            self.push(Bytes::from_owner(Mapped::new(file, range.start, len)?));
        }
        Ok(())
    }
}

/// Bytes of a file that are mapped.
struct Mapped {
    map: Mmap,
    /// Bytes of the map before the first one, in the same page.
    lead: usize,
    len: usize,
}

impl Mapped {
    #[allow(unsafe_code)] // a mapped file
    fn new(file: File, start: u64, len: usize) -> io::Result<Mapped> {
        let page = page_size();
        let lead = usize::try_from(start % page as u64).map_err(|_| io::ErrorKind::InvalidInput)?;
        let offset = start - lead as u64;
        // A page more, so that no other map is adjacent. It is never touched.
        let map_len = (lead + page).checked_add(len).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the map is read only. `push_file` says what happens if the file is changed.
        let map = unsafe { MmapOptions::new().offset(offset).len(map_len).map(&file) }.map_err(not_mapped)?;
        let first = map.as_ptr().expose_provenance();
        let at = InFile { file: Arc::new(file), offset, home: true };
        shown::show(first..first + lead + len, at);
        Ok(Mapped { map, lead, len })
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.map[self.lead..self.lead + self.len]
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let first = self.map.as_ptr().addr();
        shown::hide(first..first + self.lead + self.len);
    }
}

/// Returns how many bytes of a file of `file_len` the range has.
fn check_range(range: &Range<u64>, file_len: u64) -> io::Result<usize> {
    let invalid = |message| io::Error::new(io::ErrorKind::InvalidInput, message);
    if range.start > range.end {
        return Err(invalid(format!("the range starts at {}, after its end at {}", range.start, range.end)));
    }
    if range.end > file_len {
        return Err(invalid(format!(
            "the range ends at {}, behind the {file_len} bytes of the file",
            range.end
        )));
    }
    let len = range.end - range.start;
    usize::try_from(len).map_err(|_| invalid(format!("{len} bytes are more than a rope can hold")))
}
