//! One rope, many readers: each has a cursor, and none waits for another.
//!
//! ```text
//!                    ┌── cursor ──► fast reader
//!  Arc<Rope> ────────┼── cursor ──► fast reader      the bytes lie in memory once
//!                    └── cursor ──► slow reader
//! ```
//!
//! `cargo run --release --example broadcast` sends the rope to all readers over loopback from one thread
//! and prints for each how long it took. Every reader checks what it got.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytesize::ByteSize;
use clap::Parser;
use mio::{Events, Interest, Poll, Token};
use ropewalk::{Cursor, Pool, Rope};
use xxhash_rust::xxh3::Xxh3;

/// Bytes that a reader takes at a time.
const READ: usize = 64 << 10;

/// How long a slow reader rests after each of them.
const REST: Duration = Duration::from_millis(2);

/// Sends one rope to many readers, fast and slow ones, from one thread.
#[derive(Parser)]
struct Options {
    /// Bytes of the rope.
    #[arg(long, value_name = "BYTES", default_value = "64MiB")]
    size: ByteSize,
    /// Readers that take what they get.
    #[arg(long, value_name = "N", default_value_t = 8)]
    fast: usize,
    /// Readers that rest after every 64 KiB.
    #[arg(long, value_name = "N", default_value_t = 4)]
    slow: usize,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let pool = Pool::new()?;
    let rope = Arc::new(payload(&pool, usize::try_from(options.size.0)?));
    let before = resident()?;
    let mut broadcast = Broadcast::new()?;
    let rests = [vec![Duration::ZERO; options.fast], vec![REST; options.slow]].concat();
    let readers = rests.iter().map(|&rest| broadcast.add(&rope, rest)).collect::<anyhow::Result<Vec<_>>>()?;
    let most = broadcast.run()?;
    print_table(&broadcast, readers, checksum(&rope))?;
    let mut out = io::stdout();
    writeln!(out, "in the pool: {} for {} readers", ByteSize(pool.stats().in_use), rests.len())?;
    writeln!(
        out,
        "memory of this process (Pss): {} before, {} while sending",
        ByteSize(before),
        ByteSize(most)
    )?;
    Ok(())
}

/// Small pieces that were copied into the pool, and one that is shared.
fn payload(pool: &Pool, size: usize) -> Rope {
    let mut rope = Rope::in_pool(pool);
    let mut piece = [0; 1000];
    while rope.len() < size {
        let count = rope.len();
        piece
            .iter_mut()
            .zip(count..)
            .for_each(|(byte, at)| *byte = at.wrapping_mul(0x9E37_79B9).to_le_bytes()[3]);
        rope.extend_from_slice(&piece);
    }
    rope.push_front("to everybody: ");
    rope.truncate(size);
    rope
}

fn checksum(rope: &Rope) -> u64 {
    let mut hash = Xxh3::new();
    rope.chunks().for_each(|chunk| hash.update(chunk));
    hash.digest()
}

/// The sending side: everything on one thread.
struct Broadcast {
    poll: Poll,
    listener: TcpListener,
    receivers: Vec<Receiver>,
    start: Instant,
}

/// One peer, and how far into the rope it is.
struct Receiver {
    socket: mio::net::TcpStream,
    cursor: Cursor<Arc<Rope>>,
    writable: bool,
    calls: usize,
    took: Duration,
}

/// What a reader got, and a checksum of it.
type Got = io::Result<(usize, u64)>;

impl Broadcast {
    fn new() -> io::Result<Broadcast> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        Ok(Broadcast { poll: Poll::new()?, listener, receivers: Vec::new(), start: Instant::now() })
    }

    /// Starts a reader on a thread of its own.
    fn add(&mut self, rope: &Arc<Rope>, rest: Duration) -> anyhow::Result<JoinHandle<Got>> {
        let peer = TcpStream::connect(self.listener.local_addr()?)?;
        let (socket, _) = self.listener.accept()?;
        socket.set_nonblocking(true)?;
        let mut socket = mio::net::TcpStream::from_std(socket);
        self.poll.registry().register(&mut socket, Token(self.receivers.len()), Interest::WRITABLE)?;
        let cursor = Cursor::new(Arc::clone(rope));
        self.receivers.push(Receiver { socket, cursor, writable: true, calls: 0, took: Duration::ZERO });
        Ok(thread::spawn(move || read(peer, rest)))
    }

    /// Sends until all cursors are at the end. Returns the most memory seen when one got there.
    fn run(&mut self) -> anyhow::Result<u64> {
        self.start = Instant::now();
        let mut events = Events::with_capacity(1024);
        let mut most = 0;
        while self.receivers.iter().any(|receiver| receiver.cursor.remaining() > 0) {
            let busy = self.receivers.iter().any(Receiver::may_send);
            self.poll.poll(&mut events, busy.then_some(Duration::ZERO))?;
            for event in &events {
                self.receivers[event.token().0].writable = true;
            }
            for receiver in self.receivers.iter_mut().filter(|receiver| receiver.may_send()) {
                receiver.send()?;
                if receiver.cursor.remaining() == 0 {
                    receiver.finish(self.start)?;
                    most = most.max(resident()?);
                }
            }
        }
        Ok(most)
    }
}

impl Receiver {
    fn may_send(&self) -> bool {
        self.writable && self.cursor.remaining() > 0
    }

    /// One call, so that each has its turn.
    fn send(&mut self) -> io::Result<()> {
        self.calls += 1;
        match self.cursor.writev_to(&self.socket) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
            sent => drop(sent?),
        }
        Ok(())
    }

    fn finish(&mut self, start: Instant) -> io::Result<()> {
        self.took = start.elapsed();
        self.socket.shutdown(std::net::Shutdown::Write)
    }
}

fn read(mut socket: TcpStream, rest: Duration) -> Got {
    let (mut bytes, mut hash, mut piece) = (0, Xxh3::new(), vec![0; READ]);
    loop {
        match socket.read(&mut piece)? {
            0 => return Ok((bytes, hash.digest())),
            count => {
                bytes += count;
                hash.update(&piece[..count]);
                thread::sleep(rest);
            }
        }
    }
}

fn print_table(broadcast: &Broadcast, readers: Vec<JoinHandle<Got>>, expected: u64) -> anyhow::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{:>6}  {:>12}  {:>8}  {:>6}  checksum", "reader", "bytes", "ms", "calls")?;
    let mut wrong = 0;
    for (number, (reader, sent)) in readers.into_iter().zip(&broadcast.receivers).enumerate() {
        let (bytes, checksum) = reader.join().expect("a reader does not panic")?;
        let verdict = if checksum == expected { "matches" } else { "DIFFERS" };
        wrong += usize::from(checksum != expected);
        writeln!(
            out,
            "{number:>6}  {bytes:>12}  {:>8}  {:>6}  {verdict}",
            sent.took.as_millis(),
            sent.calls
        )?;
    }
    ensure!(wrong == 0, "{wrong} readers got something else");
    writeln!(out, "all checksums match")?;
    Ok(())
}

/// Bytes of physical memory of this process, shared pages counted once.
fn resident() -> anyhow::Result<u64> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss in smaps_rollup")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib << 10)
}
