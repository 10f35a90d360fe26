//! `transfer recv`: one payload from any peer.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytesize::ByteSize;
use ropewalk::{Pool, Rope};
use socket2::SockRef;

use crate::advise;
use crate::output::Output;
use crate::payload::checksum;
use crate::progress;
use crate::socket::Socket;

/// Receives one payload from any peer: all that it sends until it closes the connection.
///
/// The payload lies in memory once. It is written when it is complete, so whatever goes wrong, no file
/// holds half of it, and one that was there before is kept. The connection is closed when the payload is
/// written; if it is not, for whatever reason, the connection is reset, so that the sender learns of it.
/// A peer that sends nothing is waited for: it costs no memory, and timeout(1) ends it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address to listen on, such as 127.0.0.1:7000; with port 0 the system chooses one
    #[arg(long, value_name = "ADDR")]
    listen: String,
    /// Where the payload goes; without it, only its length and checksum are printed
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Bytes that must arrive: fewer or more are an error
    #[arg(long, value_name = "BYTES")]
    expect: Option<ByteSize>,
    /// Most bytes that may arrive
    #[arg(long, value_name = "BYTES")]
    limit: Option<ByteSize>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let output = args.output.as_deref().map(Output::new).transpose()?;
    let (stream, peer) = accept(&args.listen)?;
    // Closing the connection is a reset until the payload is where it should be.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    let mut socket = Socket::new(stream)?;
    let rope = receive(&mut socket, peer, args)?;
    let summary = format!("{} bytes from {peer}, xxh3 {:016x}", rope.len(), checksum(rope.chunks()));
    if let Some(output) = output {
        output.write(rope)?;
    }
    SockRef::from(socket.stream()).set_linger(None)?;
    Ok(writeln!(io::stdout(), "{summary}")?)
}

fn accept(address: &str) -> anyhow::Result<(TcpStream, SocketAddr)> {
    let listener = TcpListener::bind(address).map_err(|error| {
        advise(
            format_args!("cannot listen on {address}"),
            error,
            "choose an address of this machine and a free port",
        )
    })?;
    eprintln!("listening on {}", listener.local_addr()?);
    listener.accept().context("cannot accept a connection")
}

/// Receives until the end of the stream, and no more than is allowed.
fn receive(socket: &mut Socket, peer: SocketAddr, args: &Args) -> anyhow::Result<Rope> {
    let mut rope = Rope::in_pool(&Pool::new().context("cannot set memory aside")?);
    rope.set_limit(most(args)?);
    let bar = progress::bar(args.expect.map(|bytes| bytes.as_u64())).with_message("receiving");
    loop {
        match socket.read(|stream| rope.readv_from(stream)) {
            Ok(0) => break,
            Ok(count) => bar.inc(count as u64),
            Err(error) => return Err(explain(error, rope.len(), peer, args)),
        }
    }
    match args.expect.map(|bytes| bytes.as_u64()) {
        Some(expected) if expected > rope.len() as u64 => {
            bail!("{peer} sent only {} of {expected} bytes; have it send all of them again", rope.len())
        }
        _ => Ok(rope),
    }
}

/// Most bytes that the rope may take.
fn most(args: &Args) -> anyhow::Result<usize> {
    let most = args.limit.into_iter().chain(args.expect).min();
    Ok(most.map_or(Ok(usize::MAX), |most| usize::try_from(most.as_u64()))?)
}

fn explain(error: io::Error, len: usize, peer: SocketAddr, args: &Args) -> anyhow::Error {
    match (error.kind(), args.expect) {
        (io::ErrorKind::QuotaExceeded, Some(expected)) if expected.as_u64() == len as u64 => {
            anyhow!("{peer} sends more than the {len} bytes expected; check --expect")
        }
        (io::ErrorKind::QuotaExceeded, _) => {
            anyhow!("{peer} sends more than the limit of {len} bytes; raise --limit to take it")
        }
        (io::ErrorKind::ConnectionReset, _) => {
            anyhow!("{peer} reset the connection after {len} bytes; have it send all of them again")
        }
        (io::ErrorKind::OutOfMemory, _) => {
            advise(format_args!("no memory for more than {len} bytes"), error, "have it sent in parts")
        }
        _ => anyhow!(error).context(format!("cannot receive from {peer} after {len} bytes")),
    }
}
