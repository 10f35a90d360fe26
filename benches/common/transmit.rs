//! The ways to send what lies in many segments, each written once.

use std::io::{self, IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use buf_list::BufList;
use bytes::{Buf, Bytes};
use bytes_utils::SegmentedBuf;
use linkedbytes::LinkedBytes;
use ropewalk::Rope;
use rustix::net::{RecvFlags, recv};

use crate::measure::{Contender, timed};
use crate::wire;

/// Most iovecs in one call.
const IOV_MAX: usize = 1024;

/// Iovecs per call in `tokio::io::AsyncWriteExt::write_all_buf`.
const WRITE_ALL_BUF: usize = 64;

/// `total` bytes in segments of `segment`.
#[must_use]
pub fn segments(total: usize, segment: usize) -> Vec<Bytes> {
    let pattern = Bytes::from(wire::pattern());
    let at = |index: usize| index * segment % (pattern.len() - segment);
    (0..total / segment).map(|index| pattern.slice(at(index)..at(index) + segment)).collect()
}

/// All of them, ropewalk first. What a round builds before it sends is not timed.
#[must_use]
pub fn senders<'a>(segments: &'a [Bytes]) -> Vec<Contender<'a>> {
    let named = |name: &str, round: Box<dyn FnMut() -> f64 + 'a>| (name.to_owned(), round);
    vec![
        named("ropewalk", Box::new(|| rope(segments))),
        named("ropewalk, cursor", cursor(segments)),
        named("writev by hand", Box::new(|| by_hand(segments))),
        named("send each", Box::new(|| each(segments))),
        named("buf-list, write_all_buf", Box::new(|| list(segments))),
        named("SegmentedBuf, write_all_buf", Box::new(|| segmented(segments))),
        named("linkedbytes, write_all_vectored", Box::new(|| linked(segments))),
    ]
}

fn each(segments: &[Bytes]) -> f64 {
    sent(|mut socket| segments.iter().try_for_each(|bytes| socket.write_all(bytes)))
}

fn rope(segments: &[Bytes]) -> f64 {
    let mut rope: Rope = segments.iter().cloned().collect();
    sent(|socket| rope.write_all_to(socket))
}

fn cursor<'a>(segments: &[Bytes]) -> Box<dyn FnMut() -> f64 + 'a> {
    let rope: Rope = segments.iter().cloned().collect();
    Box::new(move || sent(|socket| rope.cursor().write_all_to(socket)))
}

fn by_hand(segments: &[Bytes]) -> f64 {
    let mut iovecs: Vec<IoSlice<'_>> = segments.iter().map(|bytes| IoSlice::new(bytes)).collect();
    sent(|socket| writev_all(socket, &mut iovecs))
}

fn list(segments: &[Bytes]) -> f64 {
    let mut list: BufList = segments.iter().cloned().collect();
    sent(|socket| write_all_buf(socket, &mut list))
}

fn segmented(segments: &[Bytes]) -> f64 {
    let mut list = SegmentedBuf::new();
    segments.iter().cloned().for_each(|bytes| list.push(bytes));
    sent(|socket| write_all_buf(socket, &mut list))
}

fn linked(segments: &[Bytes]) -> f64 {
    let mut list = LinkedBytes::new();
    segments.iter().cloned().for_each(|bytes| list.insert(bytes));
    // The others have released their segments, too, when they are done.
    sent(move |mut socket| list.sync_write_all_vectored(&mut socket))
}

/// The CPU time of a sender whose peer throws all away.
///
/// # Panics
///
/// If there is no connection, or sending fails.
pub fn sent(send: impl FnOnce(&TcpStream) -> io::Result<()>) -> f64 {
    let (socket, peer) = wire::pair().expect("a connection");
    let sink = thread::spawn(move || drain(&peer, usize::MAX));
    let seconds = timed(|| send(&socket).expect("sent"));
    socket.shutdown(Shutdown::Write).expect("open");
    sink.join().expect("the sink does not panic").expect("drained");
    seconds
}

/// recv(2) with `MSG_TRUNC` until `bytes` have come or the stream ends: TCP drops them without a copy.
///
/// # Errors
///
/// What the kernel reports.
pub fn drain(socket: &TcpStream, bytes: usize) -> io::Result<()> {
    let (mut room, mut left) = (vec![0; bytes.min(1 << 20)], bytes);
    while left > 0 {
        match recv(socket, &mut room[..left.min(1 << 20)], RecvFlags::TRUNC)?.1 {
            0 => break,
            count => left -= count,
        }
    }
    Ok(())
}

/// writev(2) until all is sent.
///
/// # Errors
///
/// What the kernel reports.
pub fn writev_all(mut socket: &TcpStream, mut iovecs: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !iovecs.is_empty() {
        let offered = iovecs.len().min(IOV_MAX);
        let count = socket.write_vectored(&iovecs[..offered])?;
        IoSlice::advance_slices(&mut iovecs, count);
    }
    Ok(())
}

/// The loop of tokio's `write_all_buf`, without tokio.
fn write_all_buf(mut socket: &TcpStream, buf: &mut impl Buf) -> io::Result<()> {
    while buf.has_remaining() {
        let mut iovecs = [IoSlice::new(&[]); WRITE_ALL_BUF];
        let used = buf.chunks_vectored(&mut iovecs);
        let count = socket.write_vectored(&iovecs[..used])?;
        buf.advance(count);
    }
    Ok(())
}
