//! The comparison: one payload, sent to a receiver of every variant in turn, round by round.

use std::env;
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, anyhow, ensure};
use bytesize::ByteSize;
use clap::ValueEnum;
use indicatif::ProgressBar;
use ropewalk::Rope;
use serde::de::DeserializeOwned;

use crate::meter::available_memory;
use crate::report::{Figures, Round};
use crate::socket::Socket;
use crate::variant::{Receipt, Variant};
use crate::{numbers, payload, progress};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Bytes to send in each round, such as 64MiB, 1GiB or 1000000
    #[arg(long, default_value = "256MiB", value_parser = numbers::memory)]
    size: ByteSize,
    /// Payloads that each variant receives
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Print the figures as one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    check_memory(args.size)?;
    let payload = payload::build(usize::try_from(args.size.as_u64())?);
    let figures = compare(&payload, args.rounds)?;
    if args.json {
        figures.print_json()?
    } else {
        figures.print_table()?
    }
    match figures.rounds.iter().find(|round| !round.verified) {
        None => Ok(()),
        Some(bad) => {
            Err(anyhow!("{} received other bytes than were sent in round {}", bad.variant, bad.round))
        }
    }
}

/// Twice the payload for the list and its join, and once for what the pool keeps warm meanwhile.
fn check_memory(size: ByteSize) -> anyhow::Result<()> {
    let (needed, available) = (size.as_u64().saturating_mul(3), available_memory()?);
    ensure!(
        needed <= available,
        "{} of memory are needed and {} available; choose a smaller --size",
        ByteSize(needed).display().iec(),
        ByteSize(available).display().iec()
    );
    Ok(())
}

fn compare(payload: &Rope, rounds: u32) -> anyhow::Result<Figures> {
    let checksum = payload::checksum(payload.chunks());
    let variants = Variant::value_variants();
    let mut receivers: Vec<Receiver> =
        variants.iter().map(|&v| Receiver::start(v)).collect::<Result<_, _>>()?;
    let bar = progress::bar(Some(payload.len() as u64 * u64::from(rounds) * variants.len() as u64));
    let mut done = Vec::new();
    for round in 1..=rounds {
        for receiver in &mut receivers {
            let name = receiver.variant.name();
            bar.set_message(format!("{name}, round {round}"));
            let taken = receiver.take(payload, &bar);
            let (receipt, send_calls) = taken.with_context(|| format!("{name}, round {round}"))?;
            let verified = (receipt.bytes, receipt.checksum) == (payload.len() as u64, checksum);
            done.push(Round::new(name, round, &receipt, send_calls, verified));
        }
    }
    Ok(Figures::new(payload.len() as u64, done))
}

/// A child process that receives.
struct Receiver {
    variant: Variant,
    child: Child,
    lines: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Receiver {
    fn start(variant: Variant) -> anyhow::Result<Receiver> {
        let mut child = Command::new(env::current_exe()?)
            .args(["receiver", variant.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a receiver")?;
        let stdout = child.stdout.take().context("a receiver's output is a pipe")?;
        let mut lines = BufReader::new(stdout);
        let address = line(&mut lines)?;
        Ok(Receiver { variant, child, lines, address })
    }

    /// Has the payload sent there. Returns the receipt, and how many system calls sending took.
    fn take(&mut self, payload: &Rope, bar: &ProgressBar) -> anyhow::Result<(Receipt, u64)> {
        let sent = TcpStream::connect(self.address).and_then(|stream| send(payload, stream, bar));
        // Where both sides fail, the receiver knows why.
        let receipt: Result<Receipt, String> = line(&mut self.lines)?;
        let receipt = receipt.map_err(anyhow::Error::msg).context("cannot receive")?;
        Ok((receipt, sent.context("cannot send")?))
    }
}

impl Drop for Receiver {
    /// Closes the child's standard input, upon which it ends.
    fn drop(&mut self) {
        let _ = self.child.wait();
    }
}

/// Reads a line of JSON.
fn line<T: DeserializeOwned>(lines: &mut impl BufRead) -> anyhow::Result<T> {
    let mut line = String::new();
    lines.read_line(&mut line)?;
    ensure!(!line.is_empty(), "the receiver is gone; if memory ran out, try a smaller --size");
    Ok(serde_json::from_str(&line)?)
}

/// Sends the payload and the end of the stream. Returns how many system calls that took.
fn send(payload: &Rope, stream: TcpStream, bar: &ProgressBar) -> io::Result<u64> {
    let mut socket = Socket::new(stream)?;
    let mut cursor = payload.cursor();
    while cursor.remaining() > 0 {
        let sent = socket.write(|stream| cursor.writev_to(stream))?;
        bar.inc(sent as u64);
    }
    Ok(socket.calls())
}
