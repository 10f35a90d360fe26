//! How much one call asks for, names, or offers.
//!
//! Except for the largest offers, what is sent fits into the socket, so that no other thread takes part.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, Write};
use std::net::TcpStream;

use bytes::Bytes;
use ropewalk::{Pool, Rope};
use ropewalk_bench::measure::timed;
use ropewalk_bench::transmit::{drain, segments, sent, writev_all};
use ropewalk_bench::wire;
use rustix::net::{RecvFlags, recv};

use super::{Tables, Trial, Unit, doubling};

/// Most iovecs in one call.
const IOV_MAX: usize = 1024;

/// Bytes that one round sends: so few that the kernel has the same memory for them each time.
const TOTAL: usize = 256 << 10;

/// Bytes asked for per read, into memory that is there.
pub(super) fn read(tables: &mut Tables) -> io::Result<()> {
    const TOTAL: usize = 4 << 20;
    let (mine, theirs) = &wire::roomy(TOTAL)?;
    let (memory, pattern) = (&RefCell::new(vec![1; TOTAL]), &wire::pattern());
    let reads: Vec<(usize, Cell<usize>)> =
        doubling(4 << 10, TOTAL).map(|asked| (asked, Cell::new(0))).collect();
    let trial = |(asked, count): &(usize, Cell<usize>)| {
        wire::send(theirs, pattern, TOTAL).expect("there is room for it");
        timed(|| count.set(received(mine, &mut memory.borrow_mut(), *asked).expect("all of it")))
    };
    let trials = reads.iter().map(|read| Trial::new(read.0, "recv", move || trial(read))).collect();
    tables.weigh("read", Unit::per_mib(TOTAL), 31, trials);
    for (asked, count) in &reads {
        let calls = (count.get() * (1 << 20)) as f64 / TOTAL as f64;
        tables.figure("read", super::size(*asked as u64), "calls", (calls, "/MiB"));
    }
    Ok(())
}

/// Fills `memory`; returns how many calls that took.
fn received(socket: &TcpStream, memory: &mut [u8], asked: usize) -> io::Result<usize> {
    let (mut at, mut calls) = (0, 0);
    while at < memory.len() {
        let end = memory.len().min(at + asked);
        at += recv(socket, &mut memory[at..end], RecvFlags::empty())?.1;
        calls += 1;
    }
    Ok(calls)
}

/// A connection that takes `TOTAL` bytes, which are then thrown away.
struct Line {
    mine: TcpStream,
    theirs: TcpStream,
}

impl Line {
    fn new() -> io::Result<Line> {
        let (theirs, mine) = wire::roomy(TOTAL)?;
        Ok(Line { mine, theirs })
    }

    fn takes(&self, bytes: usize, send: impl FnOnce(&TcpStream) -> io::Result<()>) -> f64 {
        let seconds = timed(|| send(&self.mine).expect("there is room for it"));
        drain(&self.theirs, bytes).expect("it has come");
        seconds
    }

    /// writev(2) of so many segments at a time.
    fn takes_named(&self, segments: &[Bytes], per_call: usize) -> f64 {
        let mut iovecs = Vec::with_capacity(per_call);
        self.takes(length(segments), |socket| {
            segments.chunks(per_call).try_for_each(|segments| {
                iovecs.clear();
                iovecs.extend(segments.iter().map(|bytes| IoSlice::new(bytes)));
                writev_all(socket, &mut iovecs)
            })
        })
    }

    /// All segments one behind the other.
    fn takes_copied(&self, segments: &[Bytes], flat: &mut Vec<u8>) -> f64 {
        flat.clear();
        self.takes(length(segments), |mut socket| {
            segments.iter().for_each(|bytes| flat.extend_from_slice(bytes));
            socket.write_all(flat)
        })
    }

    /// A rope that is filled, sent and dropped.
    fn takes_rope(&self, pool: &Pool, segments: &[Bytes], add: impl Fn(&mut Rope, &Bytes)) -> f64 {
        self.takes(length(segments), |socket| {
            let mut rope = Rope::in_pool(pool);
            segments.iter().for_each(|bytes| add(&mut rope, bytes));
            rope.write_all_to(socket)
        })
    }
}

fn length(segments: &[Bytes]) -> usize {
    segments.iter().map(Bytes::len).sum()
}

/// Copy or gather: segments of a size, named one by one or copied behind each other first; the same by the
/// two ways in which a rope is given them.
pub(super) fn gather(tables: &mut Tables) -> io::Result<()> {
    let (pool, line) = (&Pool::new()?, &Line::new()?);
    let push = |rope: &mut Rope, bytes: &Bytes| rope.push(bytes.clone());
    let extend = |rope: &mut Rope, bytes: &Bytes| rope.extend_from_slice(bytes);
    for size in doubling(16, 16 << 10) {
        let (segments, mut flat) = (&segments(TOTAL, size), Vec::with_capacity(TOTAL));
        let trials = vec![
            Trial::new(size, "iovecs", || line.takes_named(segments, IOV_MAX)),
            Trial::new(size, "copied", || line.takes_copied(segments, &mut flat)),
            Trial::new(size, "rope, push", || line.takes_rope(pool, segments, push)),
            Trial::new(size, "rope, extend_from_slice", || line.takes_rope(pool, segments, extend)),
        ];
        tables.weigh("gather", Unit::per_mib(TOTAL), 31, trials);
    }
    Ok(())
}

/// Iovecs per call, of 256 bytes each, and bytes per call.
pub(super) fn offered(tables: &mut Tables) -> io::Result<()> {
    let (line, small) = (&Line::new()?, &segments(TOTAL, 256));
    let trial = |count| Trial {
        at: format!("{count} iovecs"),
        way: "writev",
        round: Box::new(move || line.takes_named(small, count)),
    };
    let trials = [8, 64, 256, IOV_MAX].map(trial);
    tables.weigh("iovecs", Unit::per_mib(TOTAL), 31, trials.into());
    bytes(tables);
    Ok(())
}

/// More than a socket takes at once; another thread throws it away.
fn bytes(tables: &mut Tables) {
    let all = &vec![7; 32 << 20];
    let write =
        |offer| move || sent(|mut socket| all.chunks(offer).try_for_each(|bytes| socket.write_all(bytes)));
    let trials = doubling(16 << 10, 16 << 20).map(|offer| Trial::new(offer, "send", write(offer))).collect();
    tables.weigh("bytes", Unit::per_mib(all.len()), 15, trials);
}
