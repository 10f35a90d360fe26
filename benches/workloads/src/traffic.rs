//! The process at the other end: it makes the traffic of a round whenever it is told to.
//!
//! It uses blocking sockets and a thread for each connection: its CPU time is not measured, and it should
//! be faster than any way.

use std::io::{self, BufRead, BufWriter, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::case::Case;
use crate::pattern::{self, Check};
use crate::process::{self, Hello};
use crate::workloads;

/// Bytes that small messages are gathered to before they are sent. Half of it is more than the first
/// piece of a large message, which so leaves together with its header.
const BATCH: usize = 256 << 10;

/// The command line of the traffic process.
#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    case: String,
}

/// What the driver wants for a round.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) target: Hello,
    pub(crate) verify: bool,
}

/// One round of traffic.
pub(crate) struct Traffic<'a> {
    pub(crate) case: &'a Case,
    /// The measured process.
    pub(crate) target: &'a Hello,
    pub(crate) check: Check,
    pub(crate) listener: &'a TcpListener,
}

/// Makes traffic until standard input ends.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    process::raise_descriptor_limit()?;
    let case: Case = serde_json::from_str(&options.case)?;
    let workload = workloads::named(&case.workload)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    process::say(&Hello { address: listener.local_addr()?, certificate: None })?;
    for line in io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let check = if order.verify { Check::Full } else { Check::Sampled };
        let traffic = Traffic { case: &case, target: &order.target, check, listener: &listener };
        workload.traffic(&traffic)?;
        process::say(&())?;
    }
    Ok(())
}

impl Traffic<'_> {
    /// Connects once for each connection of the case, waits, then runs `work` for each of them in a thread.
    pub(crate) fn on_each_connection(
        &self,
        wait: impl FnOnce() -> io::Result<()>,
        work: impl Fn(TcpStream, usize) -> anyhow::Result<()> + Sync,
    ) -> anyhow::Result<()> {
        let streams = (0..self.case.connections).map(|_| connect(self.target.address));
        let streams = streams.collect::<io::Result<Vec<_>>>()?;
        wait()?;
        in_threads(streams, work)
    }
}

/// Runs `work` for each item and its index in a thread of its own, and waits for all of them.
pub(crate) fn in_threads<T: Send>(
    items: Vec<T>,
    work: impl Fn(T, usize) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let work = &work;
    thread::scope(|scope| {
        let start = |(index, item)| scope.spawn(move || work(item, index));
        let threads: Vec<_> = items.into_iter().enumerate().map(start).collect();
        threads.into_iter().try_for_each(|thread| joined(thread.join()))
    })
}

/// The result of a thread that was joined.
pub(crate) fn joined(result: thread::Result<anyhow::Result<()>>) -> anyhow::Result<()> {
    result.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread of the traffic process panicked")))
}

pub(crate) fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A writer that sends small messages many at a time, and large ones straight from the pattern.
pub(crate) fn batched<W: Write>(to: W) -> BufWriter<W> {
    BufWriter::with_capacity(BATCH, to)
}

/// Writes message `index` without any header.
pub(crate) fn write_body(to: &mut (impl Write + ?Sized), index: usize, len: usize) -> io::Result<()> {
    pattern::pieces(pattern::phase(index, len), len).try_for_each(|piece| to.write_all(piece))
}

/// Writes message `index` with its length in front, 4 bytes, big-endian.
pub(crate) fn write_frame(to: &mut (impl Write + ?Sized), index: usize, len: usize) -> anyhow::Result<()> {
    to.write_all(&u32::try_from(len)?.to_be_bytes())?;
    Ok(write_body(to, index, len)?)
}

/// Reads to the end of the stream, `read` bytes at a time, and checks that it is message `index`.
pub(crate) fn expect_body(
    mut from: impl Read,
    index: usize,
    len: usize,
    read: usize,
    check: Check,
    mut after_read: impl FnMut(),
) -> anyhow::Result<()> {
    let (mut buffer, mut done, phase) = (vec![0; read], 0, pattern::phase(index, len));
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        done += pattern::check([&buffer[..count]].into_iter(), phase + done, check)?;
        after_read();
    }
    ensure!(done == len, "{done} of {len} bytes came");
    Ok(())
}

/// Reads an HTTP head, up to and with the empty line. `None`: the connection ended before it.
pub(crate) fn read_head(from: &mut impl BufRead) -> anyhow::Result<Option<String>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if from.read_line(&mut head)? == 0 {
            ensure!(head.is_empty(), "the connection ended inside a head");
            return Ok(None);
        }
    }
    Ok(Some(head))
}

/// Writes the chunked coding of a body, in chunks of 64 KiB.
pub(crate) fn write_chunked(to: &mut (impl Write + ?Sized), index: usize, len: usize) -> anyhow::Result<()> {
    const CHUNK: usize = 64 << 10;
    let phase = pattern::phase(index, len);
    for start in (0..len).step_by(CHUNK) {
        let chunk = CHUNK.min(len - start);
        write!(to, "{chunk:x}\r\n")?;
        pattern::pieces(phase + start, chunk).try_for_each(|piece| to.write_all(piece))?;
        to.write_all(b"\r\n")?;
    }
    Ok(to.write_all(b"0\r\n\r\n")?)
}

/// The request or answer head's value of a path segment that is a number.
pub(crate) fn number<'a>(parts: &mut impl Iterator<Item = &'a str>) -> anyhow::Result<usize> {
    parts.next().context("a part of the path is missing")?.parse().context("a part of the path is no number")
}
