//! `transfer recv`: one payload from any peer.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{self, Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use bytesize::ByteSize;
use ropewalk::{Pool, Rope};
use tempfile::{Builder, NamedTempFile};

use crate::payload::checksum;
use crate::progress;
use crate::socket::Socket;

/// Receives one payload from any peer: all that it sends until it closes the connection.
///
/// The payload lies in memory once. It is written when it is complete, so whatever goes wrong, no file
/// holds half of it, and one that was there before is kept.
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
    let output = args.output.as_deref().map(Output::new).transpose().with_context(|| cannot_write(args))?;
    let (stream, peer) = accept(&args.listen)?;
    let mut rope = receive(stream, peer, args)?;
    let summary = format!("{} bytes from {peer}, xxh3 {:016x}", rope.len(), checksum(rope.chunks()));
    if let Some(output) = output {
        output.write(&mut rope).with_context(|| cannot_write(args))?;
    }
    Ok(writeln!(io::stdout(), "{summary}")?)
}

fn cannot_write(args: &Args) -> String {
    let path = args.output.as_deref().unwrap_or(Path::new("")).display();
    format!("cannot write to {path}; make room there or choose another --output")
}

fn accept(address: &str) -> anyhow::Result<(TcpStream, SocketAddr)> {
    let advice = || format!("cannot listen on {address}; choose an address of this machine and a free port");
    let listener = TcpListener::bind(address).with_context(advice)?;
    eprintln!("listening on {}", listener.local_addr()?);
    listener.accept().context("cannot accept a connection")
}

/// Receives until the end of the stream, and no more than is allowed.
fn receive(stream: TcpStream, peer: SocketAddr, args: &Args) -> anyhow::Result<Rope> {
    let mut socket = Socket::new(stream)?;
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
            anyhow!(error).context(format!("no memory for more than {len} bytes; have it sent in parts"))
        }
        _ => anyhow!(error).context(format!("cannot receive from {peer} after {len} bytes")),
    }
}

/// Where a payload goes.
enum Output {
    /// A device or a pipe is written to.
    Device(File),
    /// A file is replaced when the new one is complete.
    File(PathBuf),
}

impl Output {
    /// Finds out, before anything is received, whether there is a way to write there.
    fn new(path: &Path) -> io::Result<Output> {
        let path = fs::canonicalize(path).or_else(|_absent| path::absolute(path))?;
        if fs::metadata(&path).is_ok_and(|there| !there.is_file()) {
            return File::create(path).map(Output::Device);
        }
        tempfile::tempfile_in(directory(&path))?;
        Ok(Output::File(path))
    }

    fn write(self, rope: &mut Rope) -> io::Result<()> {
        match self {
            Output::Device(device) => rope.write_all_to(device),
            Output::File(path) => {
                let file = beside(&path)?;
                rope.write_all_to(&file)?;
                file.persist(path)?;
                Ok(())
            }
        }
    }
}

/// A file that is to replace the one at `path`, and is gone if it does not.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let permissions = fs::metadata(path).map(|there| there.permissions());
    let permissions = permissions.unwrap_or_else(|_absent| Permissions::from_mode(0o666));
    Builder::new().permissions(permissions).tempfile_in(directory(path))
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
