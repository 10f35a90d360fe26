//! Receiving into the memfd of a payload that is handed over, without touching its pages.
//!
//! ```text
//!  socket ── splice ─► pipe ── splice ─► memfd [payload·····][memory, no page table entries][hole …]
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::Rope;
use crate::sys;
use crate::sys::memory::file_size_limit;
use crate::sys::pipe::Pipe;

/// Bytes of a rope below which it is received into as any other: small payloads do not pay for a pipe.
const MIN_HELD: usize = 64 << 10;

/// Fewest bytes of the limit, and of memory, that a splice is worth.
const MIN_SPLICE: usize = 4 << 10;

/// Bytes on the stack for what the kernel did not move out of the pipe.
const STACK: usize = 4 << 10;

impl Rope {
    /// splice(2): like [`readv_from`](Rope::readv_from), but a payload that is handed over
    /// ([`Rope::for_handover`](Rope::for_handover)) goes from a stream socket to the memfd without being mapped here.
    ///
    /// The kernel copies it once, as for any receive, but neither zeroes the pages nor makes page table entries for them,
    /// and [`View::seal`](crate::View::seal) has none to remove. It pays where this process does not read the payload, or
    /// little of it: a page that is read takes a page fault then. Two system calls, or three while the memfd gets memory,
    /// by fallocate(2). The first 64 KiB are received as ever; then the rope's pool takes a pipe, two descriptors, until
    /// it is dropped.
    ///
    /// Any other rope and descriptor, and whatever the kernel does not splice, is received by `readv_from`: results, limit
    /// and errors are the same, and both can be called in turns. Only a socket whose kind the kernel tells
    /// (`SOCK_STREAM`) is spliced from.
    ///
    /// # Errors
    ///
    /// As for [`readv_from`](Rope::readv_from).
    ///
    /// # Examples
    ///
    /// ```
    /// # if cfg!(ropewalk_portable) { return Ok(()); }
    /// use ropewalk::Rope;
    /// use std::io::Write;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (mut peer, socket) = UnixStream::pair()?;
    /// let sender = std::thread::spawn(move || peer.write_all(&[7; 1 << 20]));
    ///
    /// let mut rope = Rope::for_handover()?;
    /// while rope.splice_from(&socket)? > 0 {}
    /// let sealed = rope.finalize()?.seal()?;
    /// assert_eq!(*sealed, [7; 1 << 20]);
    /// # sender.join().unwrap()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn splice_from<F: AsFd>(&mut self, fd: F) -> io::Result<usize> {
        let (fd, is_stream) = (fd.as_fd(), sys::is_stream_type::<F>());
        if self.len() >= MIN_HELD && self.held_back.is_none() {
            if !is_stream {
                // The number may be that of a message socket by now. splice(2) cuts a message, and does not tell one
                // without bytes from the end.
                self.source().forget();
            }
            if self.source().kind(fd, is_stream).is_stream() {
                if let Some(received) = self.splice(fd) {
                    return self.received(received.map(Some));
                }
            }
        }
        self.read_some(fd, is_stream, usize::MAX)
    }

    /// `None` if it cannot be spliced; nothing has been received then.
    fn splice(&mut self, fd: BorrowedFd<'_>) -> Option<io::Result<usize>> {
        let pool = self.pool()?.share();
        let mut pipe = pool.pipe()?;
        let pipe = pipe.as_mut()?;
        let want = self.reads().bytes().max(MIN_HELD).min(self.allowed());
        let len = self.commit_unmapped(want).filter(|&len| len >= MIN_SPLICE)?;
        let (memfd, offset, _) = pool.behind(self.tail_mut()?.end_address())?;
        // Beyond it the kernel would raise SIGXFSZ.
        let spliced = if (offset + len) as u64 <= file_size_limit() {
            pipe.take(fd, len).and_then(|taken| match taken {
                Some(count) => self.take_out(pipe, memfd, offset as u64, count).map(|()| Some(count)),
                None => Ok(None),
            })
        } else {
            Ok(None)
        };
        if let Ok(Some(count)) = spliced {
            self.learn(len, count);
        }
        self.release_spare();
        spliced.transpose()
    }

    /// Moves `count` bytes of the pipe to the tail, whose end is at `offset` of the memfd.
    #[allow(unsafe_code)] // that the bytes are there is known only here
    fn take_out(&mut self, pipe: &Pipe, memfd: &File, offset: u64, count: usize) -> io::Result<()> {
        let given = pipe.give(memfd, offset, count);
        if let Some(tail) = self.tail_mut() {
            // SAFETY: the kernel has written them to the memfd, from the offset on that is mapped at the end of the tail.
            unsafe { tail.fill(given) };
            // Their pages have memory, even where the kernel has none for splice(2), and the heap none either.
            let mut buffer = [0; STACK];
            for start in (given..count).step_by(STACK) {
                let part = &mut buffer[..STACK.min(count - start)];
                pipe.read(part)?;
                tail.copy_from(part);
            }
        }
        self.cut_segments();
        Ok(())
    }
}
