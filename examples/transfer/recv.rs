//! `transfer recv`: one payload from any peer.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use bytesize::ByteSize;
use indicatif::ProgressBar;
use ropewalk::{Pool, Rope};
use socket2::SockRef;

use crate::output::Output;
use crate::payload::checksum;
use crate::socket::Socket;
use crate::{advise, numbers, progress, wire};

/// Receives one payload from `transfer send`, complete or not at all.
///
/// The payload lies in memory once. It is written when it is complete, to a file without a name that then
/// replaces the one at --output: whatever goes wrong on either side, no file holds half of a payload and
/// the old file stays. The sender is told when the payload is written; if it is not, for whatever reason,
/// the connection is reset, so that the sender learns of it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address to listen on, such as 127.0.0.1:7000; with port 0 the system chooses one
    #[arg(long, value_name = "ADDR")]
    listen: String,
    /// Where the payload goes, `-` is standard output; without it, only its length and checksum are printed
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Bytes that must arrive: fewer or more are an error
    #[arg(long, value_name = "BYTES", value_parser = numbers::size)]
    expect: Option<ByteSize>,
    /// Most bytes that may arrive
    #[arg(long, value_name = "BYTES", value_parser = numbers::size)]
    limit: Option<ByteSize>,
    /// Take the bytes alone, from a peer such as `nc` or `socat`. Such a stream has no end marker: only
    /// --expect tells a complete payload from one whose sender died
    #[arg(long, requires = "expect")]
    raw: bool,
    /// Give up when the peer sends no byte for this long
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..1 << 32))]
    idle: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let output = args.output.as_deref().map(Output::new).transpose()?;
    let (stream, peer) = accept(&args.listen)?;
    // Closing the connection is a reset until the payload is where it should be.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    let mut receiving = Receiving::new(stream, args)?;
    receiving.payload().map_err(|error| explain(error, receiving.rope.len(), peer, args))?;
    let Receiving { mut socket, rope, .. } = receiving;
    check_len(rope.len(), peer, args)?;
    let (len, summary) = (rope.len() as u64, summary(&rope, peer));
    if let Some(output) = output {
        output.write(rope)?;
    }
    SockRef::from(socket.stream()).set_linger(None)?;
    if !args.raw && socket.write_all(&len.to_be_bytes()).is_err() {
        log(format_args!("{peer} closed the connection before it was told that its payload is stored"));
    }
    print(&summary, args.output.as_deref())
}

fn accept(address: &str) -> anyhow::Result<(TcpStream, SocketAddr)> {
    let listener = TcpListener::bind(address).map_err(|error| {
        advise(
            format_args!("cannot listen on {address}"),
            error,
            "choose an address of this machine and a free port",
        )
    })?;
    log(format_args!("listening on {}", listener.local_addr()?));
    listener.accept().context("cannot accept a connection")
}

fn summary(rope: &Rope, peer: SocketAddr) -> String {
    format!("{} bytes from {peer}, xxh3 {:016x}", rope.len(), checksum(rope.chunks()))
}

/// To standard error where standard output has the payload.
fn print(summary: &str, output: Option<&Path>) -> anyhow::Result<()> {
    if output == Some(Path::new("-")) {
        log(summary);
        return Ok(());
    }
    Ok(writeln!(io::stdout(), "{summary}")?)
}

/// Writes one line to standard error. Where nobody reads it any more, the payload counts.
fn log(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

struct Receiving {
    socket: Socket,
    /// The payload so far.
    rope: Rope,
    raw: bool,
    bar: ProgressBar,
}

impl Receiving {
    fn new(stream: TcpStream, args: &Args) -> anyhow::Result<Receiving> {
        let mut rope = Rope::in_pool(&Pool::new().context("cannot set memory aside")?);
        rope.set_limit(most(args)?);
        Ok(Receiving {
            socket: Socket::new(stream)?.with_idle(Duration::from_secs(args.idle)),
            rope,
            raw: args.raw,
            bar: progress::bar(args.expect.map(|bytes| bytes.as_u64())).with_message("receiving"),
        })
    }

    /// Receives the payload until it is complete.
    fn payload(&mut self) -> io::Result<()> {
        if self.raw {
            while self.some(usize::MAX)? > 0 {}
            return Ok(());
        }
        if &self.socket.read_array()? != wire::MAGIC {
            return Err(ErrorKind::InvalidData.into());
        }
        loop {
            match u32::from_be_bytes(self.socket.read_array()?) {
                0 => return Ok(()),
                len => self.piece(usize::try_from(len).map_err(io::Error::other)?)?,
            }
        }
    }

    fn piece(&mut self, mut lacks: usize) -> io::Result<()> {
        while lacks > 0 {
            match self.some(lacks)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => lacks -= count,
            }
        }
        Ok(())
    }

    fn some(&mut self, most: usize) -> io::Result<usize> {
        let count = self.socket.read(|stream| self.rope.readv_up_to(stream, most))?;
        self.bar.inc(count as u64);
        Ok(count)
    }
}

/// Most bytes that the rope may take.
fn most(args: &Args) -> anyhow::Result<usize> {
    let most = args.limit.into_iter().chain(args.expect).min();
    Ok(most.map_or(Ok(usize::MAX), |most| usize::try_from(most.as_u64()))?)
}

fn check_len(len: usize, peer: SocketAddr, args: &Args) -> anyhow::Result<()> {
    let Some(expected) = args.expect.map(|bytes| bytes.as_u64()) else { return Ok(()) };
    ensure!(
        len as u64 == expected,
        "{peer} sent only {len} of {expected} bytes; have it send all of them again"
    );
    Ok(())
}

fn explain(error: io::Error, len: usize, peer: SocketAddr, args: &Args) -> anyhow::Error {
    let again =
        |what: &dyn Display| anyhow!("{peer} {what} after {len} bytes; have it send all of them again");
    match (error.kind(), args.expect) {
        (ErrorKind::QuotaExceeded, Some(expected)) if expected.as_u64() == len as u64 => {
            anyhow!("{peer} sends more than the {len} bytes expected; check --expect")
        }
        (ErrorKind::QuotaExceeded, _) => {
            anyhow!("{peer} sends more than the limit of {len} bytes; raise --limit to take it")
        }
        (ErrorKind::ConnectionReset, _) => again(&"reset the connection"),
        (ErrorKind::UnexpectedEof, _) => again(&"ended the stream without an end marker"),
        (ErrorKind::TimedOut, _) => again(&format_args!("sent nothing for {} s", args.idle)),
        (ErrorKind::InvalidData, _) => {
            anyhow!(
                "{peer} does not send as `transfer send` does; if it sends the bytes alone, use --raw and --expect"
            )
        }
        (ErrorKind::OutOfMemory, _) => {
            advise(format_args!("no memory for more than {len} bytes"), error, "have it sent in parts")
        }
        _ => anyhow!(error).context(format!("cannot receive from {peer} after {len} bytes")),
    }
}
