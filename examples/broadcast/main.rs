//! One rope, many readers: each has a cursor, and none waits for another.
//!
//! ```text
//!                    ┌── cursor ──► fast reader
//!  Arc<Rope> ────────┼── cursor ──► fast reader      the bytes lie in memory once
//!                    └── cursor ──► slow reader
//! ```
//!
//! `cargo run --release -p broadcast` sends the rope to all readers over loopback from one thread and
//! prints for each how long it took. Every reader checks what it got. A reader that takes nothing for
//! `--idle` is given up, and its connection is reset.

#[path = "../http_upload/numbers.rs"]
mod numbers;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::iter::repeat_n;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytesize::ByteSize;
use clap::Parser;
use mio::{Events, Interest, Poll, Token};
use ropewalk::{Cursor, Pool, Rope};
use socket2::SockRef;
use xxhash_rust::xxh3::Xxh3;

/// Bytes that a reader takes at a time.
const READ: usize = 64 << 10;

/// How often deadlines are checked when nothing else happens.
const TICK: Duration = Duration::from_millis(50);

/// How long a slow reader rests after each of them.
const REST: Duration = Duration::from_millis(2);

/// Sends one rope to many readers, fast, slow and stuck ones, from one thread.
#[derive(Parser)]
#[command(name = "broadcast")]
struct Options {
    /// Bytes of the rope
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = numbers::size)]
    size: ByteSize,
    /// Readers that take what they get
    #[arg(long, value_name = "N", default_value_t = 8)]
    fast: usize,
    /// Readers that rest after every 64 KiB
    #[arg(long, value_name = "N", default_value_t = 4)]
    slow: usize,
    /// Readers that never read
    #[arg(long, value_name = "N", default_value_t = 1)]
    stuck: usize,
    /// A reader that takes nothing for so long is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..1 << 32))]
    idle: u64,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("broadcast: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    check_memory(options.size)?;
    let pool = Pool::new()?;
    let rope = Arc::new(payload(&pool, usize::try_from(options.size.0)?));
    let before = resident()?;
    let mut broadcast = Broadcast::new(Duration::from_secs(options.idle))?;
    let mut readers = Vec::new();
    for kind in kinds(options) {
        let number = readers.len() + 1;
        let added = broadcast.add(&rope, kind);
        readers
            .push(added.with_context(|| {
                format!("cannot add reader {number}; choose fewer, or raise `ulimit -n`")
            })?);
    }
    let most = broadcast.run()?;
    print_table(&broadcast, readers, checksum(&rope))?;
    let mut out = io::stdout();
    writeln!(
        out,
        "in the pool: {} for {} readers",
        ByteSize(pool.stats().in_use).display().iec(),
        broadcast.receivers.len()
    )?;
    writeln!(
        out,
        "memory of this process (Pss): {} before, {} while sending",
        ByteSize(before).display().iec(),
        ByteSize(most).display().iec()
    )?;
    Ok(())
}

fn kinds(options: &Options) -> impl Iterator<Item = Kind> {
    repeat_n(Kind::Fast, options.fast)
        .chain(repeat_n(Kind::Slow, options.slow))
        .chain(repeat_n(Kind::Stuck, options.stuck))
}

/// The rope, and as much again for whatever else is running.
fn check_memory(size: ByteSize) -> anyhow::Result<()> {
    let (needed, available) =
        (size.0.saturating_mul(2), amount(&fs::read_to_string("/proc/meminfo")?, "MemAvailable:")?);
    ensure!(
        needed <= available,
        "{} of memory are needed and {} available; choose a smaller --size",
        ByteSize(needed).display().iec(),
        ByteSize(available).display().iec()
    );
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

/// What a reader is like.
#[derive(Clone, Copy)]
enum Kind {
    Fast,
    Slow,
    Stuck,
}

/// The sending side: everything on one thread.
struct Broadcast {
    poll: Poll,
    listener: TcpListener,
    receivers: Vec<Receiver>,
    idle: Duration,
    start: Instant,
}

/// One peer, and how far into the rope it is.
struct Receiver {
    /// Until all has been sent, or the peer is given up.
    socket: Option<mio::net::TcpStream>,
    cursor: Cursor<Arc<Rope>>,
    writable: bool,
    calls: usize,
    /// When a byte was last sent.
    last: Instant,
    took: Duration,
}

/// A reader's thread, which yields the bytes that it got and a checksum of them; or its socket, if it never
/// reads.
enum Reader {
    Reads(JoinHandle<io::Result<(usize, u64)>>),
    Stuck(TcpStream),
}

impl Broadcast {
    fn new(idle: Duration) -> io::Result<Broadcast> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        Ok(Broadcast { poll: Poll::new()?, listener, receivers: Vec::new(), idle, start: Instant::now() })
    }

    /// Starts a reader, on a thread of its own if it reads.
    fn add(&mut self, rope: &Arc<Rope>, kind: Kind) -> anyhow::Result<Reader> {
        let peer = TcpStream::connect(self.listener.local_addr()?)?;
        let (socket, _) = self.listener.accept()?;
        socket.set_nonblocking(true)?;
        // One that is given up sees a reset, not the end of the stream.
        SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
        let mut socket = mio::net::TcpStream::from_std(socket);
        self.poll.registry().register(&mut socket, Token(self.receivers.len()), Interest::WRITABLE)?;
        self.receivers.push(Receiver::new(socket, Cursor::new(Arc::clone(rope))));
        let rest = match kind {
            Kind::Fast => Duration::ZERO,
            Kind::Slow => REST,
            Kind::Stuck => return Ok(Reader::Stuck(peer)),
        };
        Ok(Reader::Reads(thread::Builder::new().spawn(move || read(peer, rest))?))
    }

    /// Sends until each reader has all or is given up. Returns the most memory seen when one got there.
    fn run(&mut self) -> anyhow::Result<u64> {
        self.start = Instant::now();
        self.receivers.iter_mut().for_each(|receiver| receiver.last = self.start);
        let mut events = Events::with_capacity(1024);
        let mut most = 0;
        while self.receivers.iter().any(|receiver| receiver.socket.is_some()) {
            let busy = self.receivers.iter().any(|receiver| receiver.writable && receiver.socket.is_some());
            match self.poll.poll(&mut events, Some(if busy { Duration::ZERO } else { TICK })) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
            for event in &events {
                self.receivers[event.token().0].writable = true;
            }
            for receiver in &mut self.receivers {
                if receiver.turn(self.start, self.idle)? {
                    most = most.max(resident()?);
                }
            }
        }
        Ok(most)
    }
}

impl Receiver {
    fn new(socket: mio::net::TcpStream, cursor: Cursor<Arc<Rope>>) -> Receiver {
        let (socket, last) = (Some(socket), Instant::now());
        Receiver { socket, cursor, writable: true, calls: 0, last, took: Duration::ZERO }
    }

    /// One call, so that each has its turn. Returns whether the peer got all with it.
    fn turn(&mut self, start: Instant, idle: Duration) -> io::Result<bool> {
        let Some(socket) = &self.socket else { return Ok(false) };
        if self.cursor.remaining() == 0 {
            SockRef::from(socket).set_linger(None)?;
            socket.shutdown(Shutdown::Write)?;
            (self.took, self.socket) = (start.elapsed(), None);
            return Ok(true);
        }
        if self.writable {
            self.calls += 1;
            match self.cursor.writev_to(socket) {
                Ok(_) => self.last = Instant::now(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) if is_reset(&error) => self.socket = None,
                Err(error) => return Err(error),
            }
        } else if self.last.elapsed() > idle {
            self.socket = None;
        }
        Ok(false)
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

fn read(mut socket: TcpStream, rest: Duration) -> io::Result<(usize, u64)> {
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

fn print_table(broadcast: &Broadcast, readers: Vec<Reader>, expected: u64) -> anyhow::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{:>6}  {:>12}  {:>8}  {:>6}  checksum", "reader", "bytes", "ms", "calls")?;
    let (mut wrong, mut given_up) = (0, 0);
    for (number, (reader, sent)) in readers.into_iter().zip(&broadcast.receivers).enumerate() {
        let (bytes, verdict) = match reader {
            Reader::Reads(thread) => {
                let (bytes, checksum) = thread.join().expect("a reader does not panic")?;
                wrong += usize::from(checksum != expected);
                (bytes, if checksum == expected { "matches" } else { "DIFFERS" })
            }
            Reader::Stuck(_socket) if sent.cursor.remaining() == 0 => (sent.cursor.position(), "not read"),
            Reader::Stuck(_socket) => {
                given_up += 1;
                (sent.cursor.position(), "given up")
            }
        };
        writeln!(
            out,
            "{number:>6}  {bytes:>12}  {:>8}  {:>6}  {verdict}",
            sent.took.as_millis(),
            sent.calls
        )?;
    }
    ensure!(wrong == 0, "{wrong} readers got something else");
    writeln!(out, "all checksums match; given up after {:?} without progress: {given_up}", broadcast.idle)?;
    Ok(())
}

/// Bytes of physical memory of this process, shared pages counted once.
fn resident() -> anyhow::Result<u64> {
    amount(&fs::read_to_string("/proc/self/smaps_rollup")?, "Pss:")
}

/// Bytes in the line that starts with `name`, as procfs writes it.
fn amount(lines: &str, name: &str) -> anyhow::Result<u64> {
    let line = lines
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .with_context(|| format!("no {name} in procfs"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib << 10)
}
