//! compio, over io_uring.

use std::future::Future;
use std::io::{self, ErrorKind};

use compio::BufResult;
use compio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, AsyncWriteZerocopy};
use futures_util::future::join_all;
use ropewalk::Rope;

/// Segments of one gather write: the kernel refuses more.
const SEGMENTS_MAX: usize = 1024;

/// Receives once, at most `want` bytes, into memory of the rope that is the kernel's until the read is done: no copy.
/// Returns how many; 0 is the end. If the future is dropped, the bytes of that read are lost, and no others.
pub async fn receive(stream: &mut impl AsyncRead, rope: &mut Rope, want: usize) -> io::Result<usize> {
    let BufResult(read, lent) = stream.read(rope.lend(want)?).await;
    rope.take_back(lent);
    read
}

/// Sends a rope of any number of segments by gather writes: no copy in the program, one by the kernel.
pub async fn send(stream: &mut impl AsyncWrite, mut rope: Rope) -> io::Result<()> {
    while !rope.is_empty() {
        let BufResult(sent, _batch) = stream.write_vectored_all(rope.split_to(batch(&rope))).await;
        sent?;
    }
    Ok(())
}

/// Sends a rope by zero-copy gather writes: the socket refers to the rope's pages. Returns when all bytes are in the
/// socket's send queue, with a future that is ready when the peer has acknowledged them.
pub async fn send_zerocopy<S: AsyncWriteZerocopy>(
    stream: &mut S,
    mut rope: Rope,
) -> io::Result<impl Future<Output = ()> + use<S>> {
    let mut queued = Vec::new();
    while !rope.is_empty() {
        let BufResult(sent, released) = stream.write_zerocopy_vectored(rope.slice(..batch(&rope))).await;
        match sent? {
            0 => return Err(ErrorKind::WriteZero.into()),
            sent => rope.advance(sent),
        }
        queued.push(released);
    }
    Ok(async { drop(join_all(queued).await) })
}

/// Returns how many bytes the first segments hold that go into one write.
fn batch(rope: &Rope) -> usize {
    rope.chunks().take(SEGMENTS_MAX).map(<[u8]>::len).sum()
}
