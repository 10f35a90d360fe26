//! tokio's I/O traits, implemented by those of [`std::io`]; never pending, because a rope is in memory.

use std::borrow::Borrow;
use std::io::{self, BufRead, Seek, SeekFrom, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

use super::in_memory::{buf_read_methods, write_methods};
use crate::rope::{Cursor, Rope};
use crate::sys::shown;

/// Reads from the front; bytes that were read leave the rope. O(bytes copied).
///
/// `tokio::io::copy_buf` out of a rope passes its segments on without copying them first. To send to tokio's sockets
/// and pipes without a copy, use [`WriteRope`](crate::WriteRope).
///
/// # Examples
///
/// ```
/// use ropewalk::Rope;
/// use tokio::io::AsyncReadExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let mut rope: Rope = ["a te", "xt"].into_iter().collect();
/// let mut text = String::new();
/// rope.read_to_string(&mut text).await?;
/// assert_eq!(text, "a text");
/// assert!(rope.is_empty());
/// # Ok(())
/// # }
/// ```
impl AsyncRead for Rope {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = self.len();
        Poll::Ready(fill(into, self.get_mut(), count))
    }
}

impl AsyncBufRead for Rope {
    buf_read_methods!();
}

/// Copies bytes to the end of the rope, up to its [limit](Rope::set_limit) and to the pool's capacity. O(bytes copied).
///
/// Beyond them a write fails with [`QuotaExceeded`](io::ErrorKind::QuotaExceeded) or
/// [`OutOfMemory`](io::ErrorKind::OutOfMemory). `tokio::io::copy` then loses bytes that it had read and not
/// written: [`Rope::receive_from`] loses none, and copies once less.
///
/// # Examples
///
/// ```
/// use ropewalk::{Pool, Rope};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let mut rope = Rope::in_pool(&Pool::new()?);
/// rope.set_limit(10);
/// assert_eq!(tokio::io::copy(&mut &b"nine byte"[..], &mut rope).await?, 9);
/// assert!(tokio::io::copy(&mut &b"and more"[..], &mut rope).await.is_err());
/// # Ok(())
/// # }
/// ```
impl AsyncWrite for Rope {
    write_methods!();

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Reads from the cursor on; the rope keeps its bytes. O(bytes copied).
///
/// # Examples
///
/// ```
/// use ropewalk::Rope;
/// use std::io::SeekFrom;
/// use tokio::io::{AsyncReadExt, AsyncSeekExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let rope = Rope::from("the head and the tail");
/// let mut cursor = rope.cursor();
/// cursor.seek(SeekFrom::End(-4)).await?;
/// let mut tail = String::new();
/// cursor.read_to_string(&mut tail).await?;
/// assert_eq!(tail, "tail");
/// # Ok(())
/// # }
/// ```
impl<R: Borrow<Rope> + Unpin> AsyncRead for Cursor<R> {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = self.remaining();
        Poll::Ready(fill(into, self.get_mut(), count))
    }
}

impl<R: Borrow<Rope> + Unpin> AsyncBufRead for Cursor<R> {
    buf_read_methods!();
}

/// The end is the rope's: seeking behind it is an error, as for [`std::io::Seek`]. O(log n) in the number of segments.
impl<R: Borrow<Rope> + Unpin> AsyncSeek for Cursor<R> {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        self.seek(to).map(drop)
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position() as u64))
    }
}

/// Reads as much of the `count` bytes of `from` as there is room for.
fn fill(into: &mut ReadBuf<'_>, from: &mut impl BufRead, count: usize) -> io::Result<()> {
    let count = count.min(into.remaining());
    if !shown::is_empty() {
        // What lies in a file is read by pread(2), into memory that has to be initialised.
        from.read_exact(into.initialize_unfilled_to(count))?;
        into.advance(count);
        return Ok(());
    }
    let mut left = count;
    while left > 0 {
        let chunk = from.fill_buf()?;
        let part = chunk.len().min(left);
        into.put_slice(&chunk[..part]);
        from.consume(part);
        left -= part;
    }
    Ok(())
}
