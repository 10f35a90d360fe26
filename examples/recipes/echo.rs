//! A service on tokio.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use ropewalk::{Pool, ReadRope, Rope, WriteRope};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// What one connection may do.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Most bytes of a body.
    pub body: usize,
    /// Longest time in which no byte moves.
    pub idle: Duration,
    /// Longest time for a connection, so that a byte now and then does not keep it.
    pub total: Duration,
}

pub async fn echo(stream: TcpStream, pool: Pool, limits: Limits) -> io::Result<()> {
    // Dropped before its end, it is reset: half of an answer would end as a whole one does.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    let mut body = Rope::in_pool(&pool);
    body.set_limit(limits.body);
    while timeout(limits.idle, stream.read_rope(&mut body)).await?? > 0 {}
    while !body.is_empty() {
        timeout(limits.idle, stream.write_rope(&mut body)).await??;
    }
    SockRef::from(&stream).set_linger(None)
}

/// Serves at most `connections` at a time, each for at most `total`; further ones wait in the listen backlog.
pub async fn serve<F>(
    listener: TcpListener,
    connections: usize,
    total: Duration,
    service: impl Fn(TcpStream) -> F,
) where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(connections));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("it is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _peer)) => stream,
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
            Err(_no_descriptors_left) => {
                sleep(Duration::from_millis(100)).await; // until a connection has ended
                continue;
            }
        };
        let served = timeout(total, service(stream));
        tokio::spawn(async move {
            let _ = served.await; // an error is the peer's: log it
            drop(slot);
        });
    }
}
