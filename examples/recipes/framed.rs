//! Frames on tokio.

use std::io;
use std::time::Duration;

use ropewalk::{Pool, ReadRope, Rope, RopeCodec, WriteRope};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Echoes frames until the peer ends its stream. It may be silent for `idle` between two frames; a frame that
/// has begun, and the answer, take at most `frame` each.
pub async fn echo_frames(
    stream: TcpStream,
    pool: Pool,
    codec: RopeCodec,
    idle: Duration,
    frame: Duration,
) -> io::Result<()> {
    let mut received = Rope::in_pool(&pool); // keeps what has arrived of the next frames
    loop {
        if received.is_empty() {
            timeout(idle, stream.peek(&mut [0])).await??;
        }
        match timeout(frame, stream.read_frame(&mut received, &codec)).await?? {
            None => return Ok(()),
            Some(payload) => {
                let mut answer = codec.wrap(payload)?;
                timeout(frame, stream.write_all_rope(&mut answer)).await??;
            }
        }
    }
}
