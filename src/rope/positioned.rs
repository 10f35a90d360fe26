//! Receiving from an offset of a file; and from files that are open with `O_DIRECT`.
//!
//! The kernel reads such a file by blocks: length and offset have to be multiples of their size, and the address of a part
//! of it. A block here is a page, or the device's where that is larger.
//!
//! ```text
//! file   │   block    │   block    │   block    │  end
//!          ▲ position  └── read into pages ─────┴──┘ a short count
//!          └ read into memory beside the rope, and copied
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use zeroize::Zeroize;

use super::Rope;
use crate::pool::is_at_capacity;
use crate::sys;
use crate::sys::iovec::UninitIovec;
use crate::sys::page_size;

impl Rope {
    /// preadv(2): like [`readv_from`](Rope::readv_from) of a file, but from `offset` on, in bytes from its start. The
    /// position of the file neither counts nor moves, so that several ropes and threads can read one descriptor.
    ///
    /// Returns how many bytes were appended; `Ok(0)` is the end of the file. One system call, with the costs, the
    /// adaptive read size, the limit and `O_DIRECT` of `readv_from`.
    ///
    /// # Errors
    ///
    /// The rope holds what it held before.
    ///
    /// * [`QuotaExceeded`](io::ErrorKind::QuotaExceeded): the rope is at its [limit](Rope::set_limit), and the file has
    ///   more.
    /// * [`OutOfMemory`](io::ErrorKind::OutOfMemory): the pool is at its capacity, and the file has more; or the system
    ///   has no memory.
    /// * [`NotSeekable`](io::ErrorKind::NotSeekable): a pipe, a socket or another descriptor without offsets.
    /// * [`InvalidInput`](io::ErrorKind::InvalidInput): an offset of 2^63 - 1 or more, where no file has a byte.
    /// * Whatever else preadv(2) reports.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::Rope;
    ///
    /// let program = std::fs::File::open("/proc/self/exe")?;
    /// let mut rope = Rope::new();
    /// rope.set_limit(3);
    /// while rope.len() < 3 && rope.readv_at(&program, 1 + rope.len() as u64)? > 0 {}
    /// assert_eq!(rope, b"ELF");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn readv_at(&mut self, fd: impl AsFd, offset: u64) -> io::Result<usize> {
        let fd = fd.as_fd();
        // What was held back belongs in front.
        self.deliver_all()?;
        if self.allowed() == 0 {
            return none_at_end(fd, offset, self.limit_reached());
        }
        let want = self.read_size(sys::max_at(offset));
        let call = |iovecs: &mut [UninitIovec<'_>]| sys::preadv(fd, iovecs, offset);
        match self.receive_ready(want, false, call, |&count| count) {
            Err(error) if is_at_capacity(&error) => none_at_end(fd, offset, error),
            Err(error) if sys::needs_alignment(fd, &error) => self.read_direct(fd, Some(offset), usize::MAX),
            done => done,
        }
    }

    /// Receives from a file with `O_DIRECT`: whole blocks of it, from `offset` or from its position on, or by a copy what is
    /// less.
    #[cold]
    pub(super) fn read_direct(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: Option<u64>,
        max: usize,
    ) -> io::Result<usize> {
        let start = offset.map_or_else(|| sys::position(fd), Ok)?;
        let (want, block) = (self.read_size(max), sys::direct_block(fd)?);
        let whole = want / block * block;
        if start % block as u64 > 0 || whole == 0 {
            return self.read_part(fd, block, start, want, offset.is_none());
        }
        let ready = match self.block_aligned(whole, block) {
            // There may be room for a part of a page.
            Err(error) if is_at_capacity(&error) => {
                return self.read_part(fd, block, start, want, offset.is_none());
            }
            ready => ready?,
        };
        let count = self.fill(ready, |iovecs| sys::preadv(fd, iovecs, start), |&count| count)?;
        if offset.is_none() {
            sys::set_position(fd, start + count as u64)?;
        }
        Ok(count)
    }

    /// Reads the block of the file in which `start` lies, and appends up to `max` bytes from there on; the file's position
    /// `moves` behind them, or stays.
    fn read_part(
        &mut self,
        fd: BorrowedFd<'_>,
        block: usize,
        start: u64,
        max: usize,
        moves: bool,
    ) -> io::Result<usize> {
        let mut memory = vec![0; block + page_size()];
        let lead = memory.as_ptr().align_offset(page_size());
        let memory = &mut memory[lead..lead + block];
        let inside = usize::try_from(start % block as u64).unwrap_or(0);
        let got = sys::pread_into(fd, memory, start - inside as u64)?;
        let part = &memory[inside.min(got)..got];
        let part = &part[..part.len().min(max)];
        let (copied, len) = (self.copy_in(part), part.len());
        if self.zeroes() {
            memory[..got].zeroize();
        }
        let count = match copied {
            Err(not_copied) if not_copied.bytes == len => return Err(not_copied.error),
            Err(not_copied) => len - not_copied.bytes,
            Ok(()) => len,
        };
        if moves {
            sys::set_position(fd, start + count as u64)?;
        }
        Ok(count)
    }

    /// Makes up to `want` bytes, a multiple of a block, ready in a tail that goes on at the start of a page; returns how
    /// many.
    fn block_aligned(&mut self, want: usize, block: usize) -> io::Result<usize> {
        if !self.grow_aligned(want, block) {
            self.begin_aligned(want)?;
        }
        let ready = self.tail_mut().map_or(0, |tail| tail.ready());
        match ready.min(want) / block * block {
            0 => Err(super::tail::no_room()),
            ready => Ok(ready),
        }
    }
}

/// There is no room, which does not matter at the end of the file.
fn none_at_end(fd: BorrowedFd<'_>, offset: u64, error: io::Error) -> io::Result<usize> {
    if sys::at_end_of_file(fd, offset)? { Ok(0) } else { Err(error) }
}
