//! Mixed load with faults, for as long as you like: does anything get lost, stuck or left behind?
//!
//! ```text
//!   payload ─► rope ─► cursors ─► sockets with tiny buffers ─► ropes in one small pool ─► views
//!                                  │ reset, ended early          │ pool full, limit met    │ kept by
//!                                  └ in the middle               └ dropped in the middle   └ other threads
//! ```
//!
//! `cargo run --release --example soak -- --minutes 10`. Every byte that arrives is compared. In the end
//! all memory, all maps and all descriptors have to be back; if anything is wrong the exit code is not 0.

#[path = "../http_upload/numbers.rs"]
mod numbers;

use std::alloc::System;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytesize::ByteSize;
use cap::Cap;
use clap::Parser;
use fastrand::Rng;
use ropewalk::{Cursor, Pool, Rope, View};
use socket2::SockRef;

/// Most bytes of a payload; the sizes are spread evenly over the powers of two below.
const MOST_BITS: u32 = 22;

/// Views that wait on the shelf for another thread to check and drop them.
const SHELF: usize = 8;

/// Refusals for want of memory after which a rope gives up what it holds.
const PATIENCE: u32 = 1000;

/// Bytes of the heap that may be kept: vectors of the pool's that grow with what goes on at one time.
const SLACK: u64 = 16 << 10;

/// Counts what is allocated. The memory of the process would not show a leak: what has been freed stays
/// with the allocator, a few MiB in each of its arenas.
#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// Moves payloads through sockets, ropes and views while things go wrong.
#[derive(Parser)]
#[command(name = "soak")]
struct Options {
    /// How long.
    #[arg(long, value_name = "N", default_value = "10", value_parser = numbers::minutes)]
    minutes: Duration,
    /// Threads that do it.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: u64,
    /// Bytes of the pool; small, so that it is often full.
    #[arg(long, value_name = "BYTES", default_value = "32MiB", value_parser = numbers::memory)]
    capacity: ByteSize,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let soak = Soak::new(options.capacity)?;
    let time = options.minutes;
    // A short round first, so that the heap and the thread stacks are what they will be.
    soak.run(options.threads, time / 20)?;
    let before = soak.at_rest()?;
    let most = soak.run(options.threads, time)?;
    let after = soak.at_rest()?;
    let mut out = io::stdout();
    writeln!(out, "{}", soak.count)?;
    writeln!(out, "pool: at most {} of {} in use", ByteSize(soak.pool.stats().peak), options.capacity)?;
    writeln!(out, "process (Pss): at most {most}")?;
    writeln!(out, "heap: {} before, {} after", ByteSize(before.heap), ByteSize(after.heap))?;
    writeln!(out, "maps of the pool: {} before, {} after", before.maps, after.maps)?;
    writeln!(out, "descriptors: {} before, {} after", before.descriptors, after.descriptors)?;
    ensure!(after.in_use == 0, "{} of the pool are still in use", ByteSize(after.in_use));
    ensure!(after.heap <= before.heap + SLACK, "memory of the heap has leaked");
    ensure!(after.maps == before.maps, "maps have leaked");
    ensure!(after.descriptors == before.descriptors, "descriptors have leaked");
    writeln!(out, "nothing was lost, nothing is left")?;
    Ok(())
}

struct Soak {
    pool: Pool,
    count: Count,
    shelf: Mutex<Vec<(View, Payload)>>,
}

/// What has happened.
#[derive(Default)]
struct Count {
    bytes: AtomicU64,
    payloads: AtomicU64,
    resets: AtomicU64,
    ends: AtomicU64,
    drops: AtomicU64,
    refusals: AtomicU64,
    limits: AtomicU64,
    trims: AtomicU64,
}

impl Count {
    fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        writeln!(f, "{} in {} payloads", ByteSize(get(&self.bytes)), get(&self.payloads))?;
        write!(
            f,
            "faults: {} resets, {} early ends, {} ropes dropped half full, {} refusals for want of memory, \
             {} limits met; {} trims",
            get(&self.resets),
            get(&self.ends),
            get(&self.drops),
            get(&self.refusals),
            get(&self.limits),
            get(&self.trims)
        )
    }
}

/// What this process holds while nothing is going on.
struct Rest {
    /// Bytes of pages that are owned or keep memory.
    in_use: u64,
    /// Bytes allocated.
    heap: u64,
    maps: usize,
    descriptors: usize,
}

/// Bytes that can be made again to be compared.
#[derive(Clone, Copy)]
struct Payload {
    seed: u64,
    len: usize,
}

impl Payload {
    fn random(rng: &mut Rng) -> Payload {
        let most = 2 << rng.u32(0..MOST_BITS);
        let len = rng.usize(1..most);
        Payload { seed: rng.u64(..), len }
    }

    fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        Rng::with_seed(self.seed).fill(&mut bytes);
        bytes
    }

    /// A rope of segments of all kinds.
    fn rope(self, rng: &mut Rng, pool: &Pool) -> Rope {
        let mut rope = if rng.bool() { Rope::in_pool(pool) } else { Rope::new() };
        let bytes = self.bytes();
        let mut left = &bytes[..];
        while !left.is_empty() {
            let (piece, rest) = left.split_at(rng.usize(1..=left.len()));
            if rng.bool() {
                rope.extend_from_slice(piece);
            } else {
                rope.push(piece.to_vec());
            }
            left = rest;
        }
        rope
    }

    /// Fails unless `view` is the first bytes of this payload, or all of them.
    fn check(self, view: &[u8]) -> anyhow::Result<()> {
        let bytes = self.bytes();
        ensure!(bytes.starts_with(view), "{} of {} bytes are not those that were sent", view.len(), self.len);
        Ok(())
    }
}

impl Soak {
    fn new(capacity: ByteSize) -> anyhow::Result<Soak> {
        let pool = Pool::options().capacity(capacity.0).decay(Duration::from_millis(200)).create()?;
        Ok(Soak { pool, count: Count::default(), shelf: Mutex::default() })
    }

    /// Runs for so long; returns the most memory that the process had.
    fn run(&self, threads: u64, time: Duration) -> anyhow::Result<ByteSize> {
        let end = Instant::now() + time;
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(move || {
                        let mut rng = Rng::new();
                        while Instant::now() < end {
                            self.exchange(&mut rng)?;
                        }
                        anyhow::Ok(())
                    })
                })
                .collect();
            let mut most = 0;
            while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
                thread::sleep(Duration::from_millis(50));
                most = most.max(memory()?.0);
            }
            for worker in workers {
                worker.join().map_err(|_| anyhow::anyhow!("a thread has panicked"))??;
            }
            Ok(ByteSize(most))
        })
    }

    /// One payload to one, two or three readers.
    fn exchange(&self, rng: &mut Rng) -> anyhow::Result<()> {
        let payload = Payload::random(rng);
        let rope = payload.rope(rng, &self.pool);
        let mut lines: Vec<_> =
            (0..rng.u32(1..4)).map(|_| Line::new(rng, &rope, &self.pool)).collect::<anyhow::Result<_>>()?;
        drop(rope);
        while let Some(mut line) = (!lines.is_empty()).then(|| lines.swap_remove(rng.usize(..lines.len()))) {
            match line.step(rng, &self.count)? {
                State::Open => lines.push(line),
                State::Ended => self.finish(rng, line.received, payload)?,
                State::GivenUp => {}
            }
            if rng.u32(..4096) == 0 {
                self.pool.trim()?;
                Count::add(&self.count.trims, 1);
            }
        }
        Ok(())
    }

    /// Checks what has come, now or when another thread takes it off the shelf.
    fn finish(&self, rng: &mut Rng, received: Rope, payload: Payload) -> anyhow::Result<()> {
        Count::add(&self.count.bytes, received.len() as u64);
        Count::add(&self.count.payloads, 1);
        let view = received.finalize()?;
        payload.check(&view)?;
        let mut shelf = self.shelf.lock().map_err(|_| anyhow::anyhow!("a thread has panicked"))?;
        shelf.push((view, payload));
        let full = shelf.len() > SHELF;
        let taken = full.then(|| shelf.swap_remove(rng.usize(..SHELF)));
        drop(shelf);
        taken.map_or(Ok(()), |(view, payload)| payload.check(&view))
    }

    /// Clears the shelf and trims the pool.
    fn at_rest(&self) -> anyhow::Result<Rest> {
        let shelf =
            std::mem::take(&mut *self.shelf.lock().map_err(|_| anyhow::anyhow!("a thread has panicked"))?);
        shelf.iter().try_for_each(|(view, payload)| payload.check(view))?;
        drop(shelf);
        self.pool.trim()?;
        let heap = HEAP.allocated() as u64;
        let stats = self.pool.stats();
        let maps =
            fs::read_to_string("/proc/self/maps")?.lines().filter(|line| line.contains("memfd:")).count();
        let descriptors = fs::read_dir("/proc/self/fd")?.count();
        Ok(Rest { in_use: stats.in_use + stats.warm, heap, maps, descriptors })
    }
}

/// A cursor that sends at one end of a connection and a rope that receives at the other.
struct Line {
    cursor: Cursor<Rope>,
    writer: Option<OwnedFd>,
    reader: OwnedFd,
    received: Rope,
    /// Bytes that have to arrive; fewer than all if the writer was to end early.
    expected: usize,
    /// The reader's end was shut in the middle.
    reset: bool,
    refusals: u32,
}

enum State {
    Open,
    Ended,
    GivenUp,
}

impl Line {
    fn new(rng: &mut Rng, rope: &Rope, pool: &Pool) -> anyhow::Result<Line> {
        let (writer, reader) = connect(rng)?;
        let mut received = Rope::in_pool(pool);
        match rng.u32(..16) {
            0 => received.set_limit(rng.usize(..=rope.len())),
            // What the pool does not have is taken as it comes.
            1..4 => drop(received.reserve(rope.len())),
            _ => {}
        }
        let cursor = rope.clone().into_cursor();
        Ok(Line {
            cursor,
            writer: Some(writer),
            reader,
            received,
            expected: rope.len(),
            reset: false,
            refusals: 0,
        })
    }

    /// Sends something, receives something, or lets something go wrong.
    fn step(&mut self, rng: &mut Rng, count: &Count) -> anyhow::Result<State> {
        match rng.u32(..3000) {
            0 if !self.reset => {
                SockRef::from(&self.reader).shutdown(Shutdown::Both)?;
                self.reset = true;
                Count::add(&count.resets, 1);
            }
            1 => return Ok(fault(&count.drops)),
            2 if self.writer.take().is_some() => {
                self.expected = self.cursor.position();
                Count::add(&count.ends, 1);
            }
            _ => {}
        }
        if let Some(writer) = &self.writer {
            match self.cursor.writev_to(writer) {
                Ok(0) => self.writer = None,
                Err(error) if self.reset && is_reset(&error) => self.writer = None,
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error).context("sending"),
                _ => {}
            }
        }
        self.receive(rng, count)
    }

    fn receive(&mut self, rng: &mut Rng, count: &Count) -> anyhow::Result<State> {
        let most = if rng.bool() { usize::MAX } else { rng.usize(1..1 << 16) };
        match self.received.readv_up_to(&self.reader, most) {
            Ok(0) => {
                let (got, expected) = (self.received.len(), self.expected);
                ensure!(self.reset || got == expected, "{got} of {expected} bytes have arrived");
                Ok(State::Ended)
            }
            Ok(_) => Ok(State::Open),
            Err(error) if self.reset && is_reset(&error) => Ok(State::Ended),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => Ok(State::Open),
                ErrorKind::OutOfMemory => {
                    Count::add(&count.refusals, 1);
                    self.refusals += 1;
                    thread::yield_now();
                    Ok(if self.refusals < PATIENCE { State::Open } else { fault(&count.drops) })
                }
                ErrorKind::QuotaExceeded => Ok(fault(&count.limits)),
                _ => Err(error).context("receiving"),
            },
        }
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

fn fault(counter: &AtomicU64) -> State {
    Count::add(counter, 1);
    State::GivenUp
}

/// A connection of some kind, its buffer often as small as the kernel admits.
fn connect(rng: &mut Rng) -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let (writer, reader): (OwnedFd, OwnedFd) = if rng.u32(..4) > 0 {
        let (writer, reader) = UnixStream::pair()?;
        (writer.into(), reader.into())
    } else {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let writer = TcpStream::connect(listener.local_addr()?)?;
        (writer.into(), listener.accept()?.0.into())
    };
    for socket in [&writer, &reader] {
        SockRef::from(socket).set_nonblocking(true)?;
    }
    if rng.bool() {
        SockRef::from(&writer).set_send_buffer_size(1)?;
    }
    Ok((writer, reader))
}

/// The memory of this process, proc_pid_smaps(5): what it shares counts in part.
fn memory() -> anyhow::Result<ByteSize> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss in smaps_rollup")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(ByteSize(kib << 10))
}
