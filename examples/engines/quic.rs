//! quinn.

use std::io::{self, Write};

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use ropewalk::{Pool, Rope};

/// Sends a rope: no copy before quinn encrypts it into packets. Keep a clone of the rope to send it again, since this
/// is not cancel safe.
pub async fn send(stream: &mut SendStream, rope: Rope) -> io::Result<()> {
    let mut chunks: Vec<Bytes> = rope.into_iter().collect();
    Ok(stream.write_all_chunks(&mut chunks).await?)
}

/// Receives until the end of the stream, at most `max` bytes. Copies once, into the pool's pages: a chunk that is kept
/// would pin the buffer of its datagrams.
pub async fn receive(stream: &mut RecvStream, pool: &Pool, max: usize) -> io::Result<Rope> {
    let mut rope = Rope::in_pool(pool);
    rope.set_limit(max);
    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await? {
        rope.write_all(&chunk.bytes)?;
    }
    Ok(rope)
}
