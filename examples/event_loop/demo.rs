//! The server on one thread, and on another some thousands of clients that compare every echo.

use std::io::{self, ErrorKind, Write};
use std::iter;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use bytesize::ByteSize;
use mio::{Events, Interest, Poll, Token};
use ropewalk::{Cursor, Pool, PoolStats, Rope};
use slab::Slab;

use crate::server::{Limits, Server};

/// Clients, if that many files may be open: each needs one here and one in the server.
const CLIENTS: usize = 2000;

/// Longest message.
const LONGEST: usize = 256 << 20;

/// Bytes that are repeated.
const BLOCK: u32 = 1_000_003;

/// Messages of each client.
const MESSAGES: usize = 3;

/// Most time without a single event.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(files: u64) -> anyhow::Result<()> {
    let clients = CLIENTS.min(usize::try_from(files.saturating_sub(50) / 2)?);
    let (max_message, capacity) = (ByteSize(LONGEST as u64), ByteSize(4 * LONGEST as u64));
    let max_connections =
        u16::try_from(clients + 2).ok().and_then(NonZero::new).unwrap_or(NonZero::<u16>::MAX);
    let limits = Limits { max_message, capacity, max_connections, idle: 30, stats: None };
    let mut server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0)), limits)?;
    let (address, pool) = (server.address()?, server.pool().clone());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let serving = scope.spawn(|| server.run(&stop));
        let loaded = load(address, clients, &pool);
        stop.store(true, Ordering::Relaxed);
        serving.join().expect("the server does not panic")?;
        loaded
    })?;
    print_pool(&pool.stats())
}

fn load(address: SocketAddr, clients: usize, pool: &Pool) -> anyhow::Result<()> {
    let payload = payload();
    let mut load = Load::connect(address, clients, &payload)?;
    writeln!(io::stdout(), "{clients} connections to {address}, served by one thread")?;
    be_hostile(address)?;
    let before = Instant::now();
    load.run()?;
    let seconds = before.elapsed().as_secs_f64();
    let peak = ByteSize(pool.stats().peak);
    let messages = clients * MESSAGES;
    writeln!(
        io::stdout(),
        "{messages} messages of 0 B to {} came back as they were: {} in {seconds:.2} s, {peak} of pool at the peak",
        ByteSize(LONGEST as u64),
        ByteSize(load.bytes as u64),
    )?;
    Ok(())
}

/// One peer announces more than anybody has, one goes away in the middle of a message.
fn be_hostile(address: SocketAddr) -> io::Result<()> {
    writeln!(io::stdout(), "two hostile peers:")?;
    TcpStream::connect(address)?.write_all(&(1_u64 << 63).to_be_bytes())?;
    let mut leaving = TcpStream::connect(address)?;
    leaving.write_all(&1000_u64.to_be_bytes())?;
    leaving.shutdown(Shutdown::Write)
}

fn print_pool(pool: &PoolStats) -> anyhow::Result<()> {
    let (copied, mapped) = (ByteSize(pool.bytes_copied), ByteSize(pool.bytes_mapped));
    writeln!(
        io::stdout(),
        "finalised by mapping {mapped} in {} maps and copying {copied}; the rest was contiguous",
        pool.maps
    )?;
    ensure!(pool.in_use == 0, "{} bytes of the pool are still in use", pool.in_use);
    Ok(())
}

/// One block again and again; its length is prime, so that no echo of the wrong pages looks right.
fn payload() -> Rope {
    let block = (0..BLOCK).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 24) as u8).collect::<Vec<_>>();
    let times = LONGEST.div_ceil(block.len());
    let mut payload: Rope = iter::repeat_n(Bytes::from(block), times).collect();
    payload.truncate(LONGEST);
    payload
}

/// The lengths of client `index`'s messages: mostly small, some empty, some large, one of the longest.
fn lengths(index: usize) -> [usize; MESSAGES] {
    let large = match index {
        0 => LONGEST,
        _ if index % 100 == 0 => 4 << 20,
        _ => 64 << 10,
    };
    [index % 1000, large, 0]
}

/// All clients, on one thread too.
struct Load {
    poll: Poll,
    clients: Slab<Client>,
    bytes: usize,
}

impl Load {
    fn connect(address: SocketAddr, count: usize, payload: &Rope) -> io::Result<Load> {
        let mut load = Load { poll: Poll::new()?, clients: Slab::new(), bytes: 0 };
        for index in 0..count {
            let socket = TcpStream::connect(address)?;
            socket.set_nonblocking(true)?;
            let mut client = Client::new(socket, stream(payload, lengths(index)));
            let interest = Interest::READABLE | Interest::WRITABLE;
            let token = load.clients.vacant_key();
            load.poll.registry().register(&mut client.socket, Token(token), interest)?;
            load.clients.insert(client);
        }
        Ok(load)
    }

    /// Until every client has had all its echoes.
    fn run(&mut self) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(1024);
        while !self.clients.is_empty() {
            self.poll.poll(&mut events, Some(PATIENCE))?;
            ensure!(!events.is_empty(), "no echo for {PATIENCE:?}; {} clients wait", self.clients.len());
            for event in &events {
                self.go_on(event.token().0)?;
            }
        }
        Ok(())
    }

    fn go_on(&mut self, index: usize) -> anyhow::Result<()> {
        let Some(client) = self.clients.get_mut(index) else { return Ok(()) };
        client.go_on().with_context(|| format!("client {index}"))?;
        if client.expected.remaining() == 0 {
            self.bytes += self.clients.remove(index).expected.position();
        }
        Ok(())
    }
}

/// All messages of one client, as they go over the wire.
fn stream(payload: &Rope, lengths: [usize; MESSAGES]) -> Rope {
    let mut stream = Rope::new();
    for len in lengths {
        stream.extend_from_slice(&(len as u64).to_be_bytes());
        stream.append(payload.slice(..len));
    }
    stream
}

/// Two cursors over one rope: one for sending, one for comparing the echo.
struct Client {
    socket: mio::net::TcpStream,
    sending: Cursor<Arc<Rope>>,
    expected: Cursor<Arc<Rope>>,
}

impl Client {
    fn new(socket: TcpStream, stream: Rope) -> Client {
        let sending = Cursor::new(Arc::new(stream));
        Client { socket: mio::net::TcpStream::from_std(socket), expected: sending.clone(), sending }
    }

    /// Sends and receives until the kernel has no more room and no more bytes.
    fn go_on(&mut self) -> io::Result<()> {
        until_blocked(self.sending.write_all_to(&self.socket))?;
        until_blocked(self.receive())
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut echo = Rope::new();
        while self.expected.remaining() > 0 {
            let received = echo.readv_up_to(&self.socket, self.expected.remaining())?;
            self.compare(&echo, received)?;
            echo.clear();
        }
        Ok(())
    }

    fn compare(&mut self, echo: &Rope, received: usize) -> io::Result<()> {
        let from = self.expected.position();
        if received == 0 {
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                format!("the echo ended after {from} bytes"),
            ));
        }
        if *echo != self.expected.get_ref().slice(from..from + received) {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("another echo, near byte {from}")));
        }
        self.expected.advance(received);
        Ok(())
    }
}

fn until_blocked(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|error| if error.kind() == ErrorKind::WouldBlock { Ok(()) } else { Err(error) })
}
