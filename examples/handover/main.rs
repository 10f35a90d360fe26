//! An upload server that hands each payload to a worker process, which hashes it.
//!
//! ```text
//!  client ── TCP ──► server ── Unix socket: one descriptor (sealed), or all bytes (socket) ──► worker
//!                      ▲                                                                         │
//!                      └──────────────────────────────── hash ───────────────────────────────────┘
//! ```
//!
//! `cargo run --release -p handover` uploads some payloads both ways and prints what they cost: CPU time of server and
//! worker, of it that of the hand-over (sealing or sending, and receiving), and the most memory that both had together. `handover serve` is the server alone: each connection uploads
//! what it sends until it ends the stream, and the answer is the hash, and the nanoseconds of the hand-over.

mod meter;
#[path = "../http_upload/numbers.rs"]
mod numbers;
mod server;
mod worker;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, ensure};
use bytesize::ByteSize;
use clap::{Parser, Subcommand, ValueEnum};
use meter::Meter;
use xxhash_rust::xxh3::Xxh3;

/// Hands uploads to a worker process, and compares the ways to do so.
#[derive(Parser)]
#[command(name = "handover")]
struct Options {
    #[command(subcommand)]
    command: Option<Part>,
    /// Bytes of each upload
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = numbers::size)]
    size: ByteSize,
    /// Uploads each way
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    uploads: u32,
}

#[derive(Subcommand)]
enum Part {
    /// Serves until it is ended
    Serve(Serve),
    /// Hashes what comes through the socket that is its standard input
    #[command(hide = true)]
    Worker {
        #[arg(long)]
        way: Way,
    },
}

/// Serves uploads.
#[derive(Parser)]
struct Serve {
    /// Where to listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// How payloads get to the worker
    #[arg(long, default_value = "sealed")]
    way: Way,
    /// The longest upload
    #[arg(long, value_name = "BYTES", default_value = "4GiB", value_parser = numbers::size)]
    max: ByteSize,
    /// Longest time for an upload, so that a byte now and then does not keep a connection
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..1 << 32))]
    time: u64,
}

/// How payloads get to the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// In a sealed memfd, whose descriptor is passed
    Sealed,
    /// Through a socket
    Socket,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Sealed => "sealed",
            Way::Socket => "socket",
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.command {
        None => compare(&options),
        Some(Part::Serve(serve)) => server::serve(serve),
        Some(Part::Worker { way }) => worker::run(*way),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("handover: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Uploads both ways, and prints a table.
fn compare(options: &Options) -> anyhow::Result<()> {
    let size = usize::try_from(options.size.0)?;
    let needed = options.size.0.saturating_mul(3);
    let available = meter::available()?;
    ensure!(
        needed <= available,
        "{} of memory are needed and {} available; choose a smaller --size",
        ByteSize(needed).display().iec(),
        ByteSize(available).display().iec()
    );
    let payload: Vec<u8> = (0..size).map(|at| at.wrapping_mul(0x9E37_79B9).to_le_bytes()[3]).collect();
    let mut hash = Xxh3::new();
    hash.update(&payload);
    let expected = format!("{:016x}", hash.digest());
    let mut out = io::stdout();
    writeln!(out, "{} uploads of {}, each way", options.uploads, options.size.display().iec())?;
    writeln!(
        out,
        "{:6}  {:>13}  {:>13}  {:>18}  {:>12}  hashes",
        "way", "server CPU ms", "worker CPU ms", "least hand-over ms", "peak of both"
    )?;
    for way in [Way::Sealed, Way::Socket] {
        let server = Server::start(way, options.size)?;
        let meter = Meter::start(server.process.id())?;
        let mut handovers = Vec::new();
        for _ in 0..options.uploads {
            let answer = upload(server.address, &payload)?;
            let (hash, took) = answer.split_once(' ').unwrap_or((&answer, "0"));
            ensure!(hash == expected, "the worker hashed something else: {answer}, not {expected}");
            handovers.push(took.parse::<u64>()? as f64 / 1e6);
        }
        let handover = handovers.iter().copied().min_by(f64::total_cmp).unwrap_or(0.0);
        let cost = meter.stop()?;
        writeln!(
            out,
            "{:6}  {:>13.0}  {:>13.0}  {:>18.1}  {:>12}  match",
            way.name(),
            cost.server.as_secs_f64() * 1e3,
            cost.worker.as_secs_f64() * 1e3,
            handover,
            ByteSize(cost.peak).display().iec().to_string()
        )?;
    }
    Ok(())
}

/// A server in a process of its own, which ends with this value.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start(way: Way, max: ByteSize) -> anyhow::Result<Server> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--listen", "127.0.0.1:0", "--way", way.name()]);
        command.args(["--max", &format!("{}B", max.0)]);
        let mut process = command.stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let out = process.stdout.take().context("no output of the server")?;
        BufReader::new(out).read_line(&mut line)?;
        let address = line.trim().rsplit(' ').next().and_then(|word| word.parse().ok());
        let mut server = Server { process, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        server.address = address.with_context(|| format!("the server said {line:?}"))?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Uploads a payload; returns the answer.
fn upload(address: SocketAddr, payload: &[u8]) -> anyhow::Result<String> {
    let mut socket = TcpStream::connect(address)?;
    socket.write_all(payload)?;
    socket.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer.trim().to_owned())
}
