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
use crate::operation::Operation;
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

/// A way to send: builds what holds the segments, and returns how that is sent and released.
type Way = for<'a> fn(&'a [Bytes]) -> Box<dyn FnOnce(&TcpStream) -> io::Result<()> + 'a>;

/// All of them, ropewalk first.
const WAYS: [(&str, Way); 7] = [
    ("ropewalk", |segments| {
        let mut rope: Rope = segments.iter().cloned().collect();
        Box::new(move |socket| rope.write_all_to(socket))
    }),
    ("ropewalk, cursor", |segments| {
        let rope: Rope = segments.iter().cloned().collect();
        Box::new(move |socket| rope.cursor().write_all_to(socket))
    }),
    ("writev by hand", |segments| {
        let mut iovecs: Vec<IoSlice<'_>> = segments.iter().map(|bytes| IoSlice::new(bytes)).collect();
        Box::new(move |socket| writev_all(socket, &mut iovecs))
    }),
    ("send each", |segments| {
        Box::new(move |mut socket| segments.iter().try_for_each(|bytes| socket.write_all(bytes)))
    }),
    ("buf-list, write_all_buf", |segments| {
        let mut list: BufList = segments.iter().cloned().collect();
        Box::new(move |socket| write_all_buf(socket, &mut list))
    }),
    ("SegmentedBuf, write_all_buf", |segments| {
        let mut list = SegmentedBuf::new();
        segments.iter().cloned().for_each(|bytes| list.push(bytes));
        Box::new(move |socket| write_all_buf(socket, &mut list))
    }),
    ("linkedbytes, write_all_vectored", |segments| {
        let mut list = LinkedBytes::new();
        segments.iter().cloned().for_each(|bytes| list.insert(bytes));
        Box::new(move |mut socket| list.sync_write_all_vectored(&mut socket))
    }),
];

/// All ways, timed. What a round builds before it sends is not.
#[must_use]
pub fn senders(segments: &[Bytes]) -> Vec<Contender<'_>> {
    let timed = |(name, way): (&str, Way)| -> Contender<'_> {
        (name.to_owned(), Box::new(move || sent(way(segments))))
    };
    WAYS.into_iter().map(timed).collect()
}

/// All ways with 64 segments of 1000 B, from building what holds them until they are released.
#[must_use]
pub fn operations() -> Vec<Operation> {
    const SEGMENTS: usize = 64;
    const SEGMENT: usize = 1000;
    let operation = |(variant, way): (&'static str, Way)| {
        let run = move |times| {
            let segments = segments(SEGMENTS * SEGMENT, SEGMENT);
            let (here, there) = wire::pair().expect("a connection");
            for _ in 0..times {
                way(&segments)(&here).expect("sent");
                drain(&there, SEGMENTS * SEGMENT).expect("drained");
            }
        };
        Operation { what: "send, 64 x 1000 B", variant, run: Box::new(run) }
    };
    WAYS.into_iter().map(operation).collect()
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
    let (mut room, mut left) = (Vec::<u8>::with_capacity(bytes.min(1 << 20)), bytes);
    while left > 0 {
        let most = left.min(room.capacity());
        match recv(socket, &mut room.spare_capacity_mut()[..most], RecvFlags::TRUNC)?.1 {
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
