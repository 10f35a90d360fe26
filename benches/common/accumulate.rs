//! The ways to receive a payload and have it contiguous in the end, each written once.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::TcpStream;
use std::time::Duration;

use buf_list::BufList;
use bytes::{Bytes, BytesMut};
use bytes_utils::SegmentedBuf;
use linkedbytes::LinkedBytes;
use ropewalk::{Pool, Rope};
use rustix::net::RecvFlags;

use crate::gather::Pieces;
use crate::measure::{Contender, timed};
use crate::wire::Peer;

/// What is about to arrive.
#[derive(Clone, Copy)]
pub struct Message {
    /// Its size. Only those may use it whose name says that they know it.
    pub size: usize,
    /// Whether more follows it on the connection. If not, the end of the stream is its end.
    pub framed: bool,
}

impl Message {
    /// Most bytes that may be taken from the connection.
    #[must_use]
    pub fn most(self) -> usize {
        if self.framed { self.size } else { usize::MAX }
    }
}

/// Is shown the payload, contiguous, while it lives.
pub type Whole<'a> = &'a mut dyn FnMut(&[u8]);

/// A way to receive. What it keeps between messages, a pool or an allocation, is warm for the next one.
pub trait Accumulate {
    /// Receives one message, shows it, and releases it.
    ///
    /// # Errors
    ///
    /// What the kernel reports.
    fn receive(&mut self, socket: &TcpStream, message: Message, whole: Whole<'_>) -> io::Result<()>;
}

type Make = fn() -> Box<dyn Accumulate>;

/// All of them by name.
pub const VARIANTS: [(&str, Make); 12] = [
    ("ropewalk", || Box::new(Ropewalk::new(false, false))),
    ("ropewalk, known size", || Box::new(Ropewalk::new(true, false))),
    ("Vec, known size", || Box::new(Known)),
    ("Vec, doubling", || Box::new(Doubling)),
    ("Vec, read_to_end", || Box::new(ReadToEnd)),
    ("Vec, reused", || Box::<Reused>::default()),
    ("BytesMut", || Box::new(Mutable)),
    ("list + concat", || Box::<Pieces<Vec<Bytes>>>::default()),
    ("VecDeque<Bytes>", || Box::<Pieces<VecDeque<Bytes>>>::default()),
    ("buf-list", || Box::<Pieces<BufList>>::default()),
    ("SegmentedBuf", || Box::<Pieces<SegmentedBuf<Bytes>>>::default()),
    ("linkedbytes", || Box::<Pieces<LinkedBytes>>::default()),
];

const HUGE_PAGES: (&str, Make) = ("ropewalk, huge pages", || Box::new(Ropewalk::new(false, true)));

/// The name of a further variant, on a system that gives shared memory huge pages.
///
/// # Panics
///
/// If there is no memory for a pool.
#[must_use]
pub fn huge_pages() -> Option<&'static str> {
    let page_size = |huge| Ropewalk::new(false, huge).pool.stats().page_size;
    (page_size(true) > page_size(false)).then_some(HUGE_PAGES.0)
}

/// The variant of this name, fresh.
///
/// # Panics
///
/// If there is none.
#[must_use]
pub fn variant(name: &str) -> Box<dyn Accumulate> {
    let found = VARIANTS.iter().chain([&HUGE_PAGES]).find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no variant is called {name:?}")).1()
}

/// Rounds of receiving one payload of `size` bytes from `peer`; what a round returns is the CPU time of it.
///
/// # Panics
///
/// If the kernel refuses something.
#[must_use]
pub fn receiving<'a>(name: &str, peer: &'a Peer, size: usize) -> Contender<'a> {
    let mut variant = variant(name);
    let message = Message { size, framed: false };
    let round = move || {
        let socket = peer.order(size).expect("a connection");
        timed(|| variant.receive(&socket, message, &mut |payload| ends(payload, size)).expect("received"))
    };
    (name.to_owned(), Box::new(round))
}

/// Looks at the last byte only: that the rest is right is seen in `counts`.
///
/// # Panics
///
/// If the size is wrong.
pub fn ends(payload: &[u8], size: usize) {
    assert_eq!(payload.len(), size);
    std::hint::black_box(payload.last());
}

/// This crate: a rope in a pool, finalised.
struct Ropewalk {
    pool: Pool,
    known: bool,
}

impl Ropewalk {
    fn new(known: bool, huge_pages: bool) -> Ropewalk {
        // While the others have their turn the pool is idle for longer than it would keep its pages.
        let pool = Pool::options().decay(Duration::from_secs(3600)).huge_pages(huge_pages).create();
        Ropewalk { pool: pool.expect("a pool"), known }
    }
}

impl Accumulate for Ropewalk {
    fn receive(&mut self, socket: &TcpStream, message: Message, whole: Whole<'_>) -> io::Result<()> {
        let mut rope = Rope::in_pool(&self.pool);
        if self.known {
            rope.reserve(message.size)?;
        }
        while rope.len() < message.most() && rope.readv_up_to(socket, message.most() - rope.len())? > 0 {}
        whole(&rope.finalize()?);
        Ok(())
    }
}

/// malloc(3) of the size, and recv(2) until it is full.
struct Known;

impl Accumulate for Known {
    fn receive(&mut self, socket: &TcpStream, message: Message, whole: Whole<'_>) -> io::Result<()> {
        let mut payload = Vec::with_capacity(message.size);
        while payload.len() < message.size && recv_vec(socket, &mut payload, message.size)? > 0 {}
        whole(&payload);
        Ok(())
    }
}

/// Fewest bytes to have room for.
const LEAST: usize = 8 << 10;

/// A `Vec` whose capacity doubles when it is full; nothing is zeroed.
struct Doubling;

impl Accumulate for Doubling {
    fn receive(&mut self, socket: &TcpStream, message: Message, whole: Whole<'_>) -> io::Result<()> {
        let mut payload = Vec::new();
        loop {
            let left = message.most() - payload.len();
            if payload.len() == payload.capacity() {
                payload.reserve(LEAST.min(left));
            }
            if left == 0 || recv_vec(socket, &mut payload, left)? == 0 {
                break;
            }
        }
        whole(&payload);
        Ok(())
    }
}

/// The standard library's way.
struct ReadToEnd;

impl Accumulate for ReadToEnd {
    fn receive(&mut self, socket: &TcpStream, message: Message, whole: Whole<'_>) -> io::Result<()> {
        let mut payload = Vec::new();
        socket.take(message.most() as u64).read_to_end(&mut payload)?;
        whole(&payload);
        Ok(())
    }
}

/// One resident allocation of the right size for all messages: the limit.
#[derive(Default)]
struct Reused(Vec<u8>);

impl Accumulate for Reused {
    fn receive(&mut self, socket: &TcpStream, message: Message, whole: Whole<'_>) -> io::Result<()> {
        self.0.clear();
        self.0.reserve_exact(message.size);
        while self.0.len() < message.size && recv_vec(socket, &mut self.0, message.size)? > 0 {}
        whole(&self.0);
        Ok(())
    }
}

/// A `BytesMut` that grows, frozen in the end.
struct Mutable;

impl Accumulate for Mutable {
    fn receive(&mut self, socket: &TcpStream, message: Message, whole: Whole<'_>) -> io::Result<()> {
        let mut payload = BytesMut::new();
        loop {
            let left = message.most() - payload.len();
            if payload.len() == payload.capacity() {
                payload.reserve(LEAST.min(left));
            }
            if left == 0 || recv(socket, &mut payload, left)? == 0 {
                break;
            }
        }
        whole(&payload.freeze());
        Ok(())
    }
}

/// recv(2) into the spare capacity, at most `most` bytes.
///
/// # Errors
///
/// What the kernel reports.
pub fn recv(socket: &TcpStream, into: &mut BytesMut, most: usize) -> io::Result<usize> {
    let spare = into.spare_capacity_mut();
    let room = spare.len().min(most);
    let count = rustix::net::recv(socket, &mut spare[..room], RecvFlags::empty())?.1;
    // SAFETY: the kernel has filled that many bytes of the spare capacity.
    unsafe { into.set_len(into.len() + count) };
    Ok(count)
}

fn recv_vec(socket: &TcpStream, into: &mut Vec<u8>, most: usize) -> io::Result<usize> {
    let spare = into.spare_capacity_mut();
    let room = spare.len().min(most);
    let count = rustix::net::recv(socket, &mut spare[..room], RecvFlags::empty())?.1;
    // SAFETY: the kernel has filled that many bytes of the spare capacity.
    unsafe { into.set_len(into.len() + count) };
    Ok(count)
}
