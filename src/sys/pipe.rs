//! A pipe through which the kernel moves bytes of a socket to a memfd: splice(2).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};

use super::io::within_offer;
#[cfg(test)]
use super::mock::{self, Call};
use super::platform::{self, splice};
use super::retry;

/// Bytes of the pipe, where the kernel grants so many.
const PIPE_BYTES: i32 = 1 << 20;

/// Empty between two calls.
pub(crate) struct Pipe {
    read: File,
    write: OwnedFd,
    /// The kernel does not splice from a socket of this kind.
    refused: bool,
}

impl Pipe {
    /// pipe2(2)
    pub(crate) fn new() -> io::Result<Pipe> {
        let (read, write) = platform::pipe(PIPE_BYTES)?;
        Ok(Pipe { read: File::from(read), write, refused: false })
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.refused
    }

    /// splice(2): takes up to `len` bytes from a stream socket. Returns how many; 0 at the end of the stream, `None` if the
    /// kernel does not do so for this descriptor.
    ///
    /// # Errors
    ///
    /// As for a receive, such as `WouldBlock`. Nothing has been taken then.
    pub(crate) fn take(&mut self, from: BorrowedFd<'_>, len: usize) -> io::Result<Option<usize>> {
        let taken = retry(|| {
            #[cfg(test)]
            mock::refuse(Call::Splice)?;
            splice(from, &self.write, None, len)
        });
        match taken {
            Err(error) if super::is_unsupported(super::errno(&error)) => {
                self.refused = true;
                Ok(None)
            }
            taken => within_offer(taken?, len, "splice").map(Some),
        }
    }

    /// splice(2) until `len` bytes of the pipe, which are there, are at `offset` of a file that has memory for them, or a
    /// call fails. Returns how many are; the others are still in the pipe.
    pub(crate) fn give(&self, to: &File, offset: u64, len: usize) -> usize {
        let mut moved = 0;
        while moved < len {
            let Ok(mut at) = i64::try_from(offset + moved as u64) else { break };
            let call = || {
                #[cfg(test)]
                mock::refuse(Call::SpliceOut)?;
                splice(&self.read, to, Some(&mut at), len - moved)
            };
            match retry(call) {
                Ok(count) if count > 0 => moved += count.min(len - moved),
                _ => break,
            }
        }
        moved
    }

    /// read(2) of bytes of the pipe, which are there.
    pub(crate) fn read(&self, into: &mut [u8]) -> io::Result<()> {
        (&self.read).read_exact(into)
    }
}
