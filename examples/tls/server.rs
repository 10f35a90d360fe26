//! An echo server: it receives until a client ends its stream, and sends all of it back.

use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use bytesize::ByteSize;
use ropewalk::{Pool, Rope};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use crate::numbers;

/// Bytes that must move in each period.
const PROGRESS: usize = 64 << 10;

/// Most bytes that wait unsent in a socket; it takes more once half of them have left. Without this limit it takes some
/// MiB at once and no more until a third of them has left, so that a slow reader seems to read nothing for a long time.
const UNSENT_MAX: u32 = 128 << 10;

/// Time until the next attempt when the system lets no connection be accepted, as for want of descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// What is allowed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Limits {
    /// Most connections; further ones wait until one of them ends
    #[arg(long, value_name = "N", default_value = "1000")]
    pub(crate) max_connections: NonZero<u16>,
    /// Most bytes from one peer
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = numbers::size)]
    pub(crate) max_message: ByteSize,
    /// Most memory for all peers together
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = numbers::memory)]
    pub(crate) capacity: ByteSize,
    /// A peer is closed that does not finish its handshake, nor moves 64 KiB, nor gets room, in this time
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..1 << 32))]
    pub(crate) idle: u64,
}

pub(crate) struct Server {
    acceptor: TlsAcceptor,
    pool: Pool,
    limits: Limits,
}

impl Server {
    pub(crate) fn new(acceptor: TlsAcceptor, limits: Limits) -> io::Result<Server> {
        let pool = Pool::options().capacity(limits.capacity.0).create()?;
        Ok(Server { acceptor, pool, limits })
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Serves for ever, each connection in a task of its own.
    pub(crate) async fn run(self, listener: TcpListener) {
        let server = Arc::new(self);
        let slots = Arc::new(Semaphore::new(server.limits.max_connections.get().into()));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    // Where a sandbox forbids it, slow readers are cut off sooner.
                    let _ = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_MAX);
                    let server = Arc::clone(&server);
                    tokio::spawn(async move {
                        server.serve(stream, peer).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    log(format_args!("cannot accept now: {error}"));
                    sleep(RETRY).await;
                }
            }
        }
    }

    async fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        if let Err(error) = self.echo(stream).await {
            log(format_args!("refused {peer}: {error}"));
        }
    }

    async fn echo(&self, stream: TcpStream) -> io::Result<()> {
        let idle = Duration::from_secs(self.limits.idle);
        let mut stream = timeout(idle, self.acceptor.accept(stream)).await??;
        let mut rope = Rope::in_pool(&self.pool);
        rope.set_limit(usize::try_from(self.limits.max_message.0).unwrap_or(usize::MAX));
        let mut pace = Pace::new(idle);
        while pace.of(rope.receive_from_when_room(&mut stream)).await? > 0 {}
        let mut pace = Pace::new(idle);
        while rope.has_remaining() {
            pace.of(stream.write_buf(&mut rope)).await?;
        }
        timeout(idle, stream.shutdown()).await?
    }
}

/// A deadline that moves on as bytes do.
struct Pace {
    idle: Duration,
    moved: usize,
    ends: Instant,
}

impl Pace {
    fn new(idle: Duration) -> Pace {
        Pace { idle, moved: 0, ends: Instant::now() + idle }
    }

    async fn of(&mut self, transfer: impl Future<Output = io::Result<usize>>) -> io::Result<usize> {
        let late =
            |_| io::Error::new(ErrorKind::TimedOut, format!("less than 64 KiB moved in {:?}", self.idle));
        let moved = timeout_at(self.ends, transfer).await.map_err(late)??;
        self.moved += moved;
        if self.moved >= PROGRESS {
            *self = Pace::new(self.idle);
        }
        Ok(moved)
    }
}

/// Writes one line to standard error; an error there is ignored, so that the server goes on.
fn log(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}
