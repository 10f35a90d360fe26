//! The receiving side of a comparison: one variant, in a process of its own.

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Deref;
use std::os::fd::AsFd;
use std::time::Duration;

use clap::ValueEnum;
use nix::poll::{PollFd, PollFlags};
use ropewalk::{Pool, Rope, View};
use rustix::buffer::spare_capacity;
use serde::{Deserialize, Serialize};

use crate::meter::{Cost, physical_memory};
use crate::payload::checksum;
use crate::socket::{Socket, wait};

/// Bytes per read of the list.
const READ: usize = 256 << 10;

/// Spare bytes that a growing `Vec` has at least; std's `read_to_end` asks for as many.
const LEAST_SPARE: usize = 32;

/// A way to receive a payload of unknown size and to make it contiguous.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Variant {
    Ropewalk,
    #[value(name = "list+join")]
    ListJoin,
    #[value(name = "read_to_end")]
    ReadToEnd,
}

impl Variant {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Variant::Ropewalk => "ropewalk",
            Variant::ListJoin => "list+join",
            Variant::ReadToEnd => "read_to_end",
        }
    }
}

/// What a receiver says of one payload.
#[derive(Serialize, Deserialize)]
pub(crate) struct Receipt {
    pub(crate) bytes: u64,
    pub(crate) checksum: u64,
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    pub(crate) faults: u64,
    pub(crate) faults_to_read: u64,
    pub(crate) calls: u64,
    pub(crate) copied: u64,
    pub(crate) peak: u64,
}

/// Prints an address, then a receipt for each payload that arrives there; a line of JSON each. Ends
/// with standard input.
pub(crate) fn serve(variant: Variant) -> anyhow::Result<()> {
    let baseline = physical_memory()?;
    // The turns of the other variants are no idleness that memory should be given back for.
    let pool = Pool::options().decay(Duration::from_secs(3600)).create()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    say(&listener.local_addr()?)?;
    while let Some(stream) = next_connection(&listener)? {
        let receipt = receive(variant, &pool, stream, baseline);
        say(&receipt.map_err(|error| error.to_string()))?;
    }
    Ok(())
}

fn say(line: &impl Serialize) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{}", serde_json::to_string(line)?)?)
}

/// `None` when standard input has ended.
fn next_connection(listener: &TcpListener) -> io::Result<Option<TcpStream>> {
    let stdin = io::stdin();
    let mut fds = [listener.as_fd(), stdin.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    wait(&mut fds)?;
    if fds[1].any() == Some(true) {
        return Ok(None);
    }
    listener.accept().map(|(stream, _peer)| Some(stream))
}

fn receive(variant: Variant, pool: &Pool, stream: TcpStream, baseline: u64) -> io::Result<Receipt> {
    match variant {
        Variant::Ropewalk => {
            measure(stream, baseline, |socket| into_rope(socket, pool), |rope| Ok(rope.finalize()?))
        }
        Variant::ListJoin => measure(stream, baseline, into_list, |list| Ok(Joined::new(list))),
        Variant::ReadToEnd => measure(stream, baseline, into_vec, Ok),
    }
}

/// Receives, makes contiguous and reads, and tells what each of these costs.
fn measure<P, W: Whole>(
    stream: TcpStream,
    baseline: u64,
    receive: impl FnOnce(&mut Socket) -> io::Result<P>,
    join: impl FnOnce(P) -> io::Result<W>,
) -> io::Result<Receipt> {
    let mut socket = Socket::new(stream)?;
    let (mut cost, mut reading) = (Cost::default(), Cost::default());
    let parts = cost.of(|| receive(&mut socket))??;
    let received = physical_memory()?;
    let whole = cost.of(|| join(parts))??;
    let peak = physical_memory()?.max(received);
    let checksum = reading.of(|| checksum([&*whole]))?;
    Ok(Receipt {
        bytes: whole.len() as u64,
        checksum,
        wall: cost.wall,
        cpu: cost.cpu,
        faults: cost.faults,
        faults_to_read: reading.faults,
        calls: socket.calls() + cost.writes,
        copied: whole.copied() as u64,
        peak: peak.saturating_sub(baseline),
    })
}

fn into_rope(socket: &mut Socket, pool: &Pool) -> io::Result<Rope> {
    let mut rope = Rope::in_pool(pool);
    while socket.read(|stream| rope.readv_from(stream))? > 0 {}
    Ok(rope)
}

fn into_list(socket: &mut Socket) -> io::Result<Vec<Vec<u8>>> {
    let mut list = Vec::new();
    loop {
        let mut piece = Vec::with_capacity(READ);
        if read(socket, &mut piece)? == 0 {
            return Ok(list);
        }
        piece.shrink_to_fit();
        list.push(piece);
    }
}

fn into_vec(socket: &mut Socket) -> io::Result<Vec<u8>> {
    let mut vec = Vec::new();
    loop {
        vec.try_reserve(LEAST_SPARE)?;
        if read(socket, &mut vec)? == 0 {
            return Ok(vec);
        }
    }
}

/// read(2) into the spare capacity, which is not zeroed first.
fn read(socket: &mut Socket, into: &mut Vec<u8>) -> io::Result<usize> {
    socket.read(|stream| Ok(rustix::io::read(stream, spare_capacity(into))?))
}

/// A payload in one piece.
trait Whole: Deref<Target = [u8]> {
    /// Bytes that were copied to make it so.
    fn copied(&self) -> usize;
}

impl Whole for View {
    fn copied(&self) -> usize {
        self.copied_bytes()
    }
}

impl Whole for Vec<u8> {
    fn copied(&self) -> usize {
        0
    }
}

/// A list and its concatenation, which exist at the same time.
struct Joined {
    whole: Vec<u8>,
    _list: Vec<Vec<u8>>,
}

impl Joined {
    fn new(list: Vec<Vec<u8>>) -> Joined {
        Joined { whole: list.concat(), _list: list }
    }
}

impl Deref for Joined {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.whole
    }
}

impl Whole for Joined {
    fn copied(&self) -> usize {
        self.whole.len()
    }
}
