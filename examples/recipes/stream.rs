//! The service over TLS, or any other stream without a descriptor.

use std::io;

use bytes::Buf;
use ropewalk::{Pool, Rope};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::echo::Limits;

pub async fn echo_through<S>(mut stream: S, pool: Pool, limits: Limits) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut body = Rope::in_pool(&pool);
    body.set_limit(limits.body);
    while timeout(limits.idle, body.receive_from_when_room(&mut stream)).await?? > 0 {}
    while body.has_remaining() {
        timeout(limits.idle, stream.write_buf(&mut body)).await??;
    }
    timeout(limits.idle, stream.shutdown()).await?
}
