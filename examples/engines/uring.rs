//! compio, over io_uring.

use std::io;

use compio::BufResult;
use compio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
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

/// Sends a rope of any number of segments by gather writes: no copy.
pub async fn send(stream: &mut impl AsyncWrite, mut rope: Rope) -> io::Result<()> {
    while !rope.is_empty() {
        let batch = rope.chunks().take(SEGMENTS_MAX).map(<[u8]>::len).sum();
        let BufResult(sent, _batch) = stream.write_vectored_all(rope.split_to(batch)).await;
        sent?;
    }
    Ok(())
}
