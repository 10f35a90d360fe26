//! Sending what lies in many segments.

use std::fs::File;
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use buf_list::BufList;
use bytes::{Buf, Bytes};
use bytes_utils::SegmentedBuf;
use linkedbytes::LinkedBytes;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ropewalk::Rope;
use ropewalk_bench::measure::{Contender, in_turn, timed};
use ropewalk_bench::wire;
use rustix::net::{RecvFlags, recv};

use super::{Bar, Tables};

/// Most iovecs in one call.
const IOV_MAX: usize = 1024;

/// Iovecs per call in `tokio::io::AsyncWriteExt::write_all_buf`.
const WRITE_ALL_BUF: usize = 64;

pub(super) fn table(tables: &mut Tables) -> io::Result<()> {
    for (segment, total, rounds) in
        [(100, 16 << 20, 8), (1000, 256 << 20, 7), (10_000, 256 << 20, 7), (100_000, 256 << 20, 7)]
    {
        let segments = segments(total, segment);
        let timings = in_turn(&mut contenders(&segments), tables.rounds(rounds));
        tables.compare("send, by segment", segment, &timings, |name| match name {
            "send each" if segment == 1000 => Bar::AtLeast(15.0),
            "writev by hand" if segment == 1000 => Bar::AtLeast(1.0 / 1.05),
            name if name.contains("write_all") && segment == 1000 => Bar::AtLeast(1.0),
            _ => Bar::None,
        });
    }
    byte_by_byte(tables)
}

fn segments(total: usize, segment: usize) -> Vec<Bytes> {
    let pattern = Bytes::from(wire::pattern());
    let at = |index: usize| index * segment % (pattern.len() - segment);
    (0..total / segment).map(|index| pattern.slice(at(index)..at(index) + segment)).collect()
}

fn contenders(segments: &[Bytes]) -> [Contender<'_>; 7] {
    [
        (
            "ropewalk".to_owned(),
            Box::new(|| {
                let mut rope: Rope = segments.iter().cloned().collect();
                sent(|socket| rope.write_all_to(socket))
            }),
        ),
        ("ropewalk, cursor".to_owned(), {
            let rope: Rope = segments.iter().cloned().collect();
            Box::new(move || sent(|socket| rope.cursor().write_all_to(socket)))
        }),
        (
            "writev by hand".to_owned(),
            Box::new(|| {
                let mut iovecs: Vec<IoSlice<'_>> = segments.iter().map(|bytes| IoSlice::new(bytes)).collect();
                sent(|socket| writev_all(socket, &mut iovecs))
            }),
        ),
        (
            "send each".to_owned(),
            Box::new(|| sent(|mut socket| segments.iter().try_for_each(|bytes| socket.write_all(bytes)))),
        ),
        (
            "buf-list, write_all_buf".to_owned(),
            Box::new(|| {
                let mut list: BufList = segments.iter().cloned().collect();
                sent(|socket| write_all_buf(socket, &mut list))
            }),
        ),
        (
            "SegmentedBuf, write_all_buf".to_owned(),
            Box::new(|| {
                let mut list = SegmentedBuf::new();
                segments.iter().cloned().for_each(|bytes| list.push(bytes));
                sent(|socket| write_all_buf(socket, &mut list))
            }),
        ),
        (
            "linkedbytes, write_all_vectored".to_owned(),
            Box::new(|| {
                let mut list = LinkedBytes::new();
                segments.iter().cloned().for_each(|bytes| list.insert(bytes));
                sent(|mut socket| list.sync_write_all_vectored(&mut socket))
            }),
        ),
    ]
}

/// The CPU time of a sender whose peer throws all away.
fn sent(send: impl FnOnce(&TcpStream) -> io::Result<()>) -> f64 {
    let (socket, peer) = wire::pair().expect("a connection");
    let sink = thread::spawn(move || drain(&peer));
    let seconds = timed(|| send(&socket).expect("sent"));
    socket.shutdown(Shutdown::Write).expect("open");
    sink.join().expect("the sink does not panic").expect("drained");
    seconds
}

/// recv(2) with `MSG_TRUNC`: TCP drops the bytes without copying them.
fn drain(socket: &TcpStream) -> io::Result<()> {
    let mut room = vec![0; 1 << 20];
    while recv(socket, &mut room[..], RecvFlags::TRUNC)?.1 > 0 {}
    Ok(())
}

fn writev_all(mut socket: &TcpStream, mut iovecs: &mut [IoSlice<'_>]) -> io::Result<()> {
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

/// A descriptor that takes one byte of all that is offered: does it matter how much that is?
fn byte_by_byte(tables: &mut Tables) -> io::Result<()> {
    const BYTES: usize = 20_000;
    for segment in [1, 100] {
        let send = |bytes: usize| {
            move || {
                let mut rope: Rope = segments(bytes, segment).into_iter().collect();
                trickle(&mut rope).expect("the file takes it")
            }
        };
        let mut contenders: [Contender<'_>; 2] = [
            ("n bytes".to_owned(), Box::new(send(BYTES))),
            ("2n bytes".to_owned(), Box::new(send(2 * BYTES))),
        ];
        let timings = in_turn(&mut contenders, tables.rounds(9));
        let bar = |name: &str| if name == "2n bytes" { Bar::AtMost(2.1) } else { Bar::None };
        tables.compare("send, one byte a call", segment, &timings, bar);
    }
    Ok(())
}

/// writev(2) to a file stops where `RLIMIT_FSIZE` does; the file is taken back to one byte before it.
fn trickle(rope: &mut Rope) -> io::Result<f64> {
    const LIMIT: u64 = 1 << 20;
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE)?;
    let name = std::env::temp_dir().join(format!("ropewalk-bench-{}", std::process::id()));
    let mut file = File::create(&name)?;
    std::fs::remove_file(&name)?;
    setrlimit(Resource::RLIMIT_FSIZE, LIMIT, hard)?;
    let mut result = Ok(());
    let seconds = timed(|| {
        while result.is_ok() && !rope.is_empty() {
            result = file
                .seek(SeekFrom::Start(LIMIT - 1))
                .and_then(|_| rope.writev_to(&file))
                .map(|count| assert_eq!(count, 1));
        }
    });
    setrlimit(Resource::RLIMIT_FSIZE, soft, hard)?;
    result.map(|()| seconds)
}
