//! Each of the guide's servers as a program, for `tests/siege.rs`, which attacks it.
//!
//! ```sh
//! cargo run --release -p recipes --bin serve -- frames --listen 127.0.0.1:7000
//! ```

mod poll;

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Buf;
use clap::{Parser, ValueEnum};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use nix::sys::resource::{Resource, getrlimit};
use poll::{BOTH, Connection, Server};
use recipes::body::receive_body;
use recipes::broadcast::{Reader, send_to_all};
use recipes::echo::{Limits, echo, serve};
use recipes::framed::echo_frames;
use recipes::frames::receive_frames;
use recipes::proxy::Next;
use recipes::receive::{receive, send};
use recipes::spill::{large_pool, store};
use recipes::stream::echo_through;
use recipes::threads;
use ropewalk::{Pool, Rope, RopeCodec};

/// Serves by one of the guide's recipes until killed. The first line on standard output is `listening on ADDRESS`.
#[derive(Parser)]
#[command(name = "serve")]
struct Options {
    recipe: Recipe,
    /// Address and port; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Most connections; further ones wait until one of them ends
    #[arg(long, value_name = "N", default_value = "64")]
    connections: NonZero<u16>,
    /// Most bytes from a peer
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    max: u32,
    /// How long a peer may take to send, and how long to take the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    time: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Recipe {
    /// Sends back what came until the end of the stream
    Receive,
    /// Sends back what its length, 8 bytes big-endian, announced
    Body,
    /// As `receive`, through a file
    Spill,
    /// Sends back frames, whose length is 4 bytes big-endian, under an edge-triggered poll
    Frames,
    /// Sends `max` bytes to each peer
    Broadcast,
    /// As `receive`, on tokio
    Echo,
    /// As `receive`, for any stream of tokio's
    Stream,
    /// As `frames`, on tokio
    Framed,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serve: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    match options.recipe {
        Recipe::Receive | Recipe::Body | Recipe::Spill => blocking(options),
        Recipe::Frames => frames(options),
        Recipe::Broadcast => broadcast(options),
        Recipe::Echo | Recipe::Stream | Recipe::Framed => on_tokio(options),
    }
}

impl Options {
    fn max(&self) -> usize {
        self.max as usize
    }

    fn time(&self) -> Duration {
        Duration::from_secs(self.time.into())
    }

    /// Has room for the most that all peers may hold at a time: a growing rope has some more than its bytes.
    fn pool(&self) -> io::Result<Pool> {
        let each = 2 * u64::from(self.max) + (1 << 20);
        Pool::options().capacity(u64::from(self.connections.get()) * each).create()
    }

    fn listener(&self) -> anyhow::Result<TcpListener> {
        let listener = TcpListener::bind(self.listen).with_context(|| self.cannot_listen())?;
        writeln!(io::stdout(), "listening on {}", listener.local_addr()?)?;
        Ok(listener)
    }

    fn cannot_listen(&self) -> String {
        format!("cannot listen on {}; choose a free port", self.listen)
    }
}

fn blocking(options: &Options) -> anyhow::Result<()> {
    let (max, time) = (options.max(), options.time());
    // A directory of its own would stay where the program is killed.
    let directory = Path::new("/var/tmp");
    let pool = match options.recipe {
        Recipe::Spill => large_pool(directory)?,
        _ => options.pool()?,
    };
    let listener = options.listener()?;
    let threads = match options.recipe {
        Recipe::Spill => options.connections.min(threads_with_two_descriptors()?),
        _ => options.connections,
    };
    let uploads = AtomicU64::new(0);
    threads::serve(&listener, threads, |socket| {
        let rope = match options.recipe {
            Recipe::Body => {
                let announced = receive_body(socket, 8, &pool, 8, time)?.get_u64();
                receive_body(socket, announced, &pool, max, time)?
            }
            Recipe::Spill => {
                let upload = uploads.fetch_add(1, Ordering::Relaxed);
                let name = format!(".ropewalk-serve-{}-{upload}", std::process::id());
                Rope::from(stored(&directory.join(name), |path| store(socket, &pool, path, max, time))?)
            }
            _ => receive(socket, &pool, max, time)?,
        };
        send(socket, rope, time)
    });
    Ok(())
}

/// So many threads can have a socket and a file each. With more of them, sockets would take the descriptors that whole
/// uploads need to become files.
fn threads_with_two_descriptors() -> anyhow::Result<NonZero<u16>> {
    let open = std::fs::read_dir("/proc/self/fd")?.count() as u64;
    let (most, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let threads = u16::try_from(most.saturating_sub(open) / 2).unwrap_or(u16::MAX);
    NonZero::new(threads).with_context(|| format!("{most} descriptors are too few; raise `ulimit -n`"))
}

/// What `store` has made a file, without that file.
fn stored<T>(path: &Path, store: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let view = store(path)?;
    std::fs::remove_file(path)?;
    Ok(view)
}

fn frames(options: &Options) -> anyhow::Result<()> {
    let pool = options.pool()?;
    let limits = poll::Limits { connections: options.connections.get().into(), idle: options.time() };
    let mut server = Server::bind(options.listen, limits, |mut socket, registry, token| {
        registry.register(&mut socket, token, BOTH)?;
        Ok(Frames::new(socket, &pool))
    })
    .with_context(|| options.cannot_listen())?;
    Ok(server.run()?)
}

/// A peer that sends frames, and what of them it has not taken back.
struct Frames {
    socket: TcpStream,
    received: Rope,
    answers: Rope,
    ended: bool,
    /// When a frame was last whole, or as many bytes of the answers sent.
    last: Instant,
    sent: usize,
}

impl Frames {
    /// Calls in one turn, so that other connections have theirs.
    const TURN: usize = 16;

    /// A peer is not received from while so many bytes wait for it.
    const ANSWERS_MAX: usize = 1 << 20;

    const PROGRESS: usize = 64 << 10;

    fn new(socket: TcpStream, pool: &Pool) -> Frames {
        let (received, answers) = (Rope::in_pool(pool), Rope::in_pool(pool));
        Frames { socket, received, answers, ended: false, last: Instant::now(), sent: 0 }
    }

    /// Whether it did something.
    fn receive(&mut self) -> io::Result<bool> {
        if self.ended || self.answers.len() >= Self::ANSWERS_MAX {
            return Ok(false);
        }
        let mut answers = std::mem::take(&mut self.answers);
        let received = receive_frames(&self.socket, &mut self.received, |frame| {
            self.last = Instant::now();
            answers.extend_from_slice(&(frame.len() as u32).to_be_bytes());
            // A short one is not worth a segment.
            match frame.len() {
                0..1024 => frame.chunks().for_each(|chunk| answers.extend_from_slice(chunk)),
                _ => answers.append(frame),
            }
        });
        self.answers = answers;
        unless_blocked(received.map(|more| self.ended = !more))
    }

    fn send(&mut self) -> io::Result<bool> {
        if self.answers.is_empty() {
            return Ok(false);
        }
        unless_blocked(self.answers.writev_to(&self.socket).map(|sent| {
            self.sent += sent;
            if self.sent >= Self::PROGRESS || self.answers.is_empty() {
                (self.sent, self.last) = (0, Instant::now());
            }
        }))
    }
}

impl Connection for Frames {
    fn turn(&mut self) -> io::Result<Next> {
        for _ in 0..Self::TURN {
            let moved = self.receive()? | self.send()?;
            if self.ended && self.answers.is_empty() {
                return Ok(Next::End);
            }
            if !moved {
                return Ok(Next::Event);
            }
        }
        Ok(Next::Turn)
    }

    fn last(&self) -> Instant {
        self.last
    }
}

fn unless_blocked(done: io::Result<()>) -> io::Result<bool> {
    match done {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        done => done.map(|()| true),
    }
}

/// Under an edge-triggered poll that only says when to look: each reader has a turn then.
fn broadcast(options: &Options) -> anyhow::Result<()> {
    const TICK: Duration = Duration::from_millis(100);
    let rope = Arc::new(Rope::from((0..options.max()).map(|at| (at % 251) as u8).collect::<Vec<_>>()));
    let listener = options.listener()?;
    listener.set_nonblocking(true)?;
    let mut listener = mio::net::TcpListener::from_std(listener);
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(1024));
    poll.registry().register(&mut listener, Token(0), Interest::READABLE)?;
    let mut readers = Vec::new();
    loop {
        while readers.len() < options.connections.get().into() {
            let Ok((mut socket, _)) = listener.accept() else { break };
            poll.registry().register(&mut socket, Token(1), Interest::WRITABLE)?;
            readers.push(Reader::new(socket, &rope));
        }
        let again = send_to_all(&mut readers, options.time());
        match poll.poll(&mut events, Some(if again { Duration::ZERO } else { TICK })) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
    }
}

fn on_tokio(options: &Options) -> anyhow::Result<()> {
    let (pool, time) = (options.pool()?, options.time());
    let limits = Limits { body: options.max(), idle: time, total: 2 * time };
    let codec = RopeCodec::new(options.max());
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = options.listener()?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let connections = options.connections.get().into();
        let pool = || pool.clone();
        match options.recipe {
            Recipe::Stream => {
                serve(listener, connections, limits.total, |peer| echo_through(peer, pool(), limits)).await
            }
            Recipe::Framed => {
                // A connection may be as long as it makes progress.
                let service = |peer| echo_frames(peer, pool(), codec, time, time);
                serve(listener, connections, Duration::MAX, service).await
            }
            _ => serve(listener, connections, limits.total, |peer| echo(peer, pool(), limits)).await,
        }
        Ok(())
    })
}
