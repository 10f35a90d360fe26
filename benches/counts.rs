//! Counts, no clock: what it takes to receive a payload over loopback and to have it contiguous.
//!
//! ```text
//! cargo bench --bench counts                 a table
//! cargo bench --bench counts -- --json       the same for machines
//! cargo bench --bench counts -- --quick      up to 16 MiB
//! ```
//!
//! Each variant and payload gets a fresh process, which receives and nothing else; the sender is in
//! this one. Its first round is *cold*, of the later ones, *warm*, the medians are shown.
//! The receiver counts its page faults (getrusage(2) of the thread), allocations and copied bytes
//! (`counting/heap.rs`); this process follows it for system calls and memory (`counting/trace.rs`).
//! The end of the payload is the end of the stream, unless a variant's name says that it knows the size.
//! Every variant reads from a socket that wakes it for 256 KiB or the end (`SO_RCVLOWAT`).

use std::io::{self, BufRead, BufReader, Error, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::{env, thread};

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::getppid;
use ropewalk_bench::accumulate::{Message, VARIANTS, variant};
use ropewalk_bench::report::{self, Report};
use ropewalk_bench::wire;
use serde::{Deserialize, Serialize};
use trace::{Seen, Tracer};

#[path = "counting/heap.rs"]
mod heap;
#[path = "counting/trace.rs"]
mod trace;

const SIZES: [usize; 7] = [64, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20, 1 << 30];

/// Largest payload of a quick run.
const QUICK: usize = 16 << 20;

fn main() -> io::Result<()> {
    match report::value_of("--receive") {
        Some(name) => receiver(&name),
        None => count_all(),
    }
}

/// What the receiver counts of a round.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Felt {
    faults: u64,
    allocations: u64,
    allocated: u64,
    copied: u64,
}

/// One line of the table.
#[derive(Serialize)]
struct Row {
    variant: &'static str,
    payload: usize,
    warm: bool,
    page_faults: u64,
    syscalls: u64,
    allocations: u64,
    allocated_bytes: u64,
    copied_bytes: u64,
    peak_bytes: u64,
}

fn count_all() -> io::Result<()> {
    let most = if report::asked_for("--quick") { QUICK } else { usize::MAX };
    let only = report::value_of("--variant");
    let mut report = Report::new(&heading(), line);
    for payload in SIZES.into_iter().filter(|&size| size <= most) {
        for (name, _) in VARIANTS {
            if only.as_deref().is_none_or(|only| only == name) {
                let rounds = count(name, payload)?;
                report.add(row(name, payload, false, &rounds[..1]));
                report.add(row(name, payload, true, &rounds[1..]));
            }
        }
    }
    Ok(report.end()?)
}

/// Payloads for each process: a cold one, and those that the warm figures are the median of. The second maps
/// what the first has filled; now and then the heap grows by a page.
const ROUNDS: usize = 6;

/// Runs one variant in a process of its own, and sends to it.
fn count(name: &str, payload: usize) -> io::Result<Vec<(Felt, Seen)>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port().to_string();
    let mut child = Command::new(env::current_exe()?)
        .args(["--receive", name, "--size", &payload.to_string(), "--port", &port])
        .args(["--rounds", &ROUNDS.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let tracer = Tracer::attach(child.id(), payload as u64)?;
    thread::spawn(move || send_rounds(&listener, payload));
    child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?.write_all(b"go")?;
    let seen = tracer.follow()?;
    let output = BufReader::new(child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?);
    let felt =
        output.lines().map(|line| Ok(serde_json::from_str(&line?)?)).collect::<io::Result<Vec<Felt>>>()?;
    if felt.len() != ROUNDS || seen.len() != ROUNDS {
        return Err(Error::other(format!(
            "{} and {} of {ROUNDS} rounds were counted",
            felt.len(),
            seen.len()
        )));
    }
    Ok(felt.into_iter().zip(seen).collect())
}

/// The sender. If the receiver dies, that is noticed by who follows it.
fn send_rounds(listener: &TcpListener, payload: usize) -> io::Result<()> {
    let pattern = wire::pattern();
    for _ in 0..ROUNDS {
        let socket = listener.accept()?.0;
        wire::send(&socket, &pattern, payload)?;
        socket.shutdown(Shutdown::Write)?;
    }
    Ok(())
}

/// The process that receives.
fn receiver(name: &str) -> io::Result<()> {
    let number =
        |flag| report::value_of(flag).and_then(|word| word.parse().ok()).ok_or(io::ErrorKind::InvalidInput);
    let (size, port, rounds) = (number("--size")?, number("--port")?, number("--rounds")?);
    io::stdin().read_to_end(&mut Vec::new())?; // until it is followed
    let mut variant = variant(name);
    let message = Message { size, framed: false };
    for _ in 0..rounds {
        let socket = TcpStream::connect(("127.0.0.1", u16::try_from(port).map_err(Error::other)?))?;
        wire::steady(&socket)?;
        let (before_faults, before) = (faults()?, heap::tally());
        getppid(); // see `trace`
        variant.receive(&socket, message, &mut |payload| wire::check(payload, size))?;
        getppid();
        let after = heap::tally();
        let round = Felt {
            faults: faults()? - before_faults,
            allocations: after.allocations - before.allocations,
            allocated: after.allocated - before.allocated,
            copied: after.copied - before.copied,
        };
        println!("{}", serde_json::to_string(&round)?);
    }
    Ok(())
}

fn faults() -> io::Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    u64::try_from(usage.minor_page_faults() + usage.major_page_faults()).map_err(Error::other)
}

fn row(variant: &'static str, payload: usize, warm: bool, rounds: &[(Felt, Seen)]) -> Row {
    let median = |of: fn(&(Felt, Seen)) -> u64| {
        let mut values: Vec<u64> = rounds.iter().map(of).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    Row {
        variant,
        payload,
        warm,
        page_faults: median(|(felt, _)| felt.faults),
        syscalls: median(|(_, seen)| seen.syscalls),
        allocations: median(|(felt, _)| felt.allocations),
        allocated_bytes: median(|(felt, _)| felt.allocated),
        copied_bytes: median(|(felt, _)| felt.copied),
        peak_bytes: median(|(_, seen)| seen.peak),
    }
}

fn heading() -> String {
    format!(
        "{:8} {:22} {:4} {:>8} {:>8} {:>7} {:>11} {:>11} {:>7} {:>9}",
        "payload", "variant", "", "faults", "syscalls", "allocs", "allocated", "copied", "peak", "peak KiB"
    )
}

fn line(row: &Row) -> String {
    format!(
        "{:8} {:22} {:4} {:8} {:8} {:7} {:11} {:11} {:7.3} {:9}",
        report::size(row.payload as u64),
        row.variant,
        if row.warm { "warm" } else { "cold" },
        row.page_faults,
        row.syscalls,
        row.allocations,
        row.allocated_bytes,
        row.copied_bytes,
        row.peak_bytes as f64 / row.payload as f64,
        row.peak_bytes >> 10,
    )
}
