//! The traits of `std::io`: a rope is read from its front and written at its end; a cursor is read and seeks.

use std::borrow::Borrow;
use std::io::{self, BufRead, IoSlice, Read, Seek, SeekFrom, Write};

use crate::rope::{Cursor, Rope};
use crate::sys::shown;

/// Reads from the front; bytes that were read leave the rope.
///
/// [`io::copy`] out of a rope copies through 8 KiB on the stack. To a descriptor, [`write_all_to`](Rope::write_all_to)
/// copies nothing; to another writer, a [`BufWriter`](io::BufWriter) of 64 KiB or more saves calls.
///
/// # Examples
///
/// ```
/// use ropewalk::Rope;
/// use std::io::{BufRead, Read};
///
/// let mut rope: Rope = ["a li", "ne\nthe", " rest"].into_iter().collect();
/// let mut line = String::new();
/// rope.read_line(&mut line)?;
/// let mut rest = String::new();
/// rope.read_to_string(&mut rest)?;
/// assert_eq!((&*line, &*rest), ("a line\n", "the rest"));
/// assert!(rope.is_empty());
/// # Ok::<(), std::io::Error>(())
/// ```
impl Read for Rope {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.take_by(|cursor| cursor.read(into))
    }

    fn read_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.take_by(|cursor| cursor.read_exact(into))
    }

    fn read_to_end(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        self.take_by(|cursor| cursor.read_to_end(into))
    }
}

impl Rope {
    /// Drops the bytes that `read` passes.
    fn take_by<T>(&mut self, read: impl FnOnce(&mut Cursor<&Rope>) -> T) -> T {
        let mut cursor = self.cursor();
        let result = read(&mut cursor);
        let passed = cursor.position();
        self.advance(passed);
        result
    }
}

impl BufRead for Rope {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self.piece(0))
    }

    fn consume(&mut self, count: usize) {
        self.advance(count);
    }
}

/// Copies bytes to the end of the rope, up to its [limit](Rope::set_limit). In a full pool it is an error of kind
/// [`OutOfMemory`](io::ErrorKind::OutOfMemory).
///
/// [`io::copy`] into a rope copies through 8 KiB on the stack. From a descriptor, [`readv_from`](Rope::readv_from)
/// copies nothing; from another reader, a [`BufReader`](io::BufReader) of 64 KiB or more saves calls.
///
/// # Examples
///
/// ```
/// use ropewalk::{Pool, Rope};
/// use std::io::{self, BufReader, Read};
///
/// let source = io::repeat(7).take(1_000_000);
/// let mut rope = Rope::in_pool(&Pool::new()?);
/// io::copy(&mut BufReader::with_capacity(64 << 10, source), &mut rope)?;
/// assert_eq!(rope.len(), 1_000_000);
/// # Ok::<(), io::Error>(())
/// ```
impl Write for Rope {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let allowed = self.allowed();
        if bytes.len() <= allowed && self.copy_in_place(bytes) {
            return Ok(bytes.len());
        }
        if allowed == 0 && !bytes.is_empty() {
            return Err(self.limit_reached());
        }
        let bytes = &bytes[..bytes.len().min(allowed)];
        match self.copy_in(bytes) {
            Err(not_copied) if not_copied.bytes == bytes.len() => Err(not_copied.error),
            Err(not_copied) => Ok(bytes.len() - not_copied.bytes),
            Ok(()) => Ok(bytes.len()),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut written = 0;
        for slice in slices {
            match self.write(slice) {
                Ok(count) if count == slice.len() => written += count,
                Ok(count) => return Ok(written + count),
                Err(error) if written == 0 => return Err(error),
                Err(_) => break, // it comes again with the next write
            }
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads from the cursor on; the rope keeps its bytes. What lies in a [file](Rope::push_file), or was
/// [spilled](crate::PoolOptions::spill) to one, is read by pread(2): its errors are errors, not signals.
impl<R: Borrow<Rope>> Read for Cursor<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = into.len().min(self.remaining());
        read_all(self, &mut into[..count])?;
        Ok(count)
    }

    fn read_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        let (want, have) = (into.len(), self.remaining());
        if have < want {
            // `read_exact` leaves unspecified what was read before an error; here all bytes are.
            self.advance(have);
            let message = format!("{want} bytes wanted, {have} left");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        read_all(self, into)
    }

    fn read_to_end(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        let (before, count) = (into.len(), self.remaining());
        into.try_reserve(count).map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))?;
        let read = self.chunks().try_for_each(|chunk| shown::append(chunk, into));
        read.inspect_err(|_| into.truncate(before))?;
        self.advance(count);
        Ok(count)
    }
}

/// Fills `into`, for which there are enough bytes. On an error the cursor stays.
fn read_all<R: Borrow<Rope>>(cursor: &mut Cursor<R>, into: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    for chunk in cursor.chunks() {
        let count = chunk.len().min(into.len() - done);
        shown::copy(&chunk[..count], &mut into[done..done + count])?;
        done += count;
        if done == into.len() {
            break;
        }
    }
    cursor.advance(done);
    Ok(())
}

impl<R: Borrow<Rope>> BufRead for Cursor<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(Cursor::chunk(self))
    }

    fn consume(&mut self, count: usize) {
        self.advance(count);
    }
}

/// Seeks within the rope. Unlike in a file, seeking beyond the end is an error.
///
/// # Examples
///
/// ```
/// use ropewalk::Rope;
/// use std::io::{Read, Seek, SeekFrom};
///
/// let rope = Rope::from("the head and the tail");
/// let mut cursor = rope.cursor();
/// cursor.seek(SeekFrom::End(-4))?;
/// let mut tail = String::new();
/// cursor.read_to_string(&mut tail)?;
/// assert_eq!(tail, "tail");
/// assert!(cursor.seek(SeekFrom::Current(1)).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
impl<R: Borrow<Rope>> Seek for Cursor<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let len = self.rope().len();
        let (base, by) = match to {
            SeekFrom::Start(at) => (0, i128::from(at)),
            SeekFrom::End(by) => (len, i128::from(by)),
            SeekFrom::Current(by) => (self.position(), i128::from(by)),
        };
        let target = base as i128 + by;
        match usize::try_from(target) {
            Ok(position) if position <= len => {
                self.set_position(position);
                Ok(position as u64)
            }
            _ => {
                let message = format!("cannot seek to {target} in a rope of {len} bytes");
                Err(io::Error::new(io::ErrorKind::InvalidInput, message))
            }
        }
    }
}
