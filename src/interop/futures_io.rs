//! The traits of `futures-io`, implemented by those of [`std::io`]; never pending, because a rope is in memory.

use std::borrow::Borrow;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_io::{AsyncBufRead, AsyncRead, AsyncSeek, AsyncWrite};

use super::in_memory::{buf_read_methods, write_methods};
use crate::rope::{Cursor, Rope};

/// Reads from the front; bytes that were read leave the rope.
///
/// # Examples
///
/// ```
/// use futures_util::io::{AsyncReadExt, AsyncWriteExt};
/// use futures_util::FutureExt;
/// use ropewalk::Rope;
///
/// let copied = async {
///     let mut rope = Rope::new();
///     rope.write_all(b"there and back").await?;
///     let mut text = String::new();
///     rope.read_to_string(&mut text).await?;
///     assert!(rope.is_empty());
///     Ok::<String, std::io::Error>(text)
/// };
/// let text = copied.now_or_never().expect("a rope is never pending")?;
/// assert_eq!(text, "there and back");
/// # Ok::<(), std::io::Error>(())
/// ```
impl AsyncRead for Rope {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.read(into))
    }
}

impl AsyncBufRead for Rope {
    buf_read_methods!();
}

/// Copies bytes to the end of the rope, up to its [limit](Rope::set_limit).
impl AsyncWrite for Rope {
    write_methods!();

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Reads from the cursor on; the rope keeps its bytes.
impl<R: Borrow<Rope> + Unpin> AsyncRead for Cursor<R> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.read(into))
    }
}

impl<R: Borrow<Rope> + Unpin> AsyncBufRead for Cursor<R> {
    buf_read_methods!();
}

impl<R: Borrow<Rope> + Unpin> AsyncSeek for Cursor<R> {
    fn poll_seek(mut self: Pin<&mut Self>, _: &mut Context<'_>, to: SeekFrom) -> Poll<io::Result<u64>> {
        Poll::Ready(self.seek(to))
    }
}
