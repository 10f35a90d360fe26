//! Ropes that receive from any `AsyncRead`: the end is never confused with a limit, the pool's capacity bounds what is
//! held, and no byte is lost.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test fails by panicking

use std::future::Future;
use std::io::{self, ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ropewalk::{Pool, ReadRope, RoomFuture, Rope, RopeCodec, WriteRope};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf, duplex};
use tokio::net::UnixStream;
use tokio::time::timeout;

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;
const SOON: Duration = Duration::from_millis(50);
const LATE: Duration = Duration::from_secs(60);

/// Bytes that do not repeat by the page; another `seed` makes others.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let at = |i: u64| (i.wrapping_add(seed << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
    (0..len as u64).map(at).collect()
}

/// A stream of `bytes`, in pieces of at most `piece`; waits before each of them if it is `slow`.
struct Pieces<'a> {
    bytes: &'a [u8],
    piece: usize,
    slow: bool,
    waited: bool,
}

fn pieces(bytes: &[u8], piece: usize, slow: bool) -> Pieces<'_> {
    Pieces { bytes, piece, slow, waited: false }
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        assert!(into.remaining() > 0, "a read of nothing tells nothing");
        self.waited = !self.waited;
        if self.slow && self.waited {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let (now, later) = self.bytes.split_at(self.piece.min(into.remaining()).min(self.bytes.len()));
        into.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}

/// Polls once.
fn poll<T>(future: impl Future<Output = T>) -> Poll<T> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match poll(future) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("nothing to wait for"),
    }
}

fn kind(read: io::Result<usize>) -> Result<usize, ErrorKind> {
    read.map_err(|error| error.kind())
}

fn pool_of(pages: usize) -> Pool {
    Pool::options().capacity((pages * PAGE) as u64).create().unwrap()
}

/// A rope at its limit that holds `b` back, of a stream `abc` of which `c` is left.
fn holding_back(mut rope: Rope) -> (Rope, &'static [u8]) {
    let mut stream = &b"abc"[..];
    rope.set_limit(1);
    assert_eq!(now(rope.receive_from(&mut stream)).unwrap(), 1);
    assert_eq!(kind(now(rope.receive_from(&mut stream))), Err(ErrorKind::QuotaExceeded));
    assert_eq!((&rope, stream), (&Rope::from("a"), &b"c"[..]));
    rope.set_limit(usize::MAX);
    (rope, stream)
}

#[test]
fn the_limit_is_an_error_and_the_end_is_the_end() {
    let payload = pattern(1, 3 * PAGE + 7);
    let limits = [0, 1, 2, PAGE - 1, PAGE, PAGE + 1, payload.len() - 1, payload.len(), payload.len() + 1];
    for limit in limits {
        for piece in [1, 100, usize::MAX] {
            for pool in [None, Some(Pool::new().unwrap())] {
                let mut rope = pool.as_ref().map_or_else(Rope::new, Rope::in_pool);
                rope.set_limit(limit);
                let mut stream = pieces(&payload, piece, false);
                let end = loop {
                    match now(rope.receive_from(&mut stream)) {
                        Ok(count) if count > 0 => assert!(rope.len() <= limit),
                        end => break kind(end),
                    }
                };
                let fits = limit >= payload.len();
                assert_eq!(end, if fits { Ok(0) } else { Err(ErrorKind::QuotaExceeded) }, "{limit} {piece}");
                // The same again, as often as one likes: nothing more is read.
                let left = stream.bytes.len();
                assert_eq!(kind(now(rope.receive_from(&mut stream))), end);
                assert_eq!((rope.len(), stream.bytes.len()), (limit.min(payload.len()), left));
                rope.set_limit(usize::MAX);
                while now(rope.receive_from(&mut stream)).unwrap() > 0 {}
                assert!(rope == payload, "limit {limit}, pieces of {piece}");
            }
        }
    }
}

#[tokio::test]
async fn the_capacity_bounds_what_is_received_and_nothing_is_lost() {
    for pages in [1, 256] {
        let pool = pool_of(pages);
        let payload = pattern(2, 16 * MIB.min(pages * 4 * PAGE));
        let (mut here, mut there) = duplex(100_000);
        let sent = payload.clone();
        let send = tokio::spawn(async move { here.write_all(&sent).await.unwrap() });
        let (mut rope, mut received, mut refused) = (Rope::in_pool(&pool), Vec::new(), 0);
        loop {
            match rope.receive_from(&mut there).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
                    assert!(error.to_string().contains("capacity"), "{error}");
                    assert!(rope.len() <= pages * PAGE);
                    let length = rope.len();
                    assert_eq!(kind(rope.receive_from(&mut there).await), Err(ErrorKind::OutOfMemory));
                    assert_eq!(rope.len(), length);
                    received.extend_from_slice(&rope.split_to(length).to_vec());
                    refused += 1;
                }
            }
            assert_eq!(pool.stats().fallbacks, 0);
        }
        send.await.unwrap();
        received.extend_from_slice(&rope.to_vec());
        assert!(refused > 0 && received == payload, "{refused} {}", received.len());
        drop(rope);
        assert_eq!(pool.stats().in_use, 0);
    }
}

#[test]
fn a_stream_that_fits_ends_although_the_pool_is_full() {
    let pool = pool_of(1);
    let payload = pattern(3, PAGE);
    let mut rope = Rope::in_pool(&pool);
    let mut stream = pieces(&payload, 1000, false);
    while now(rope.receive_from(&mut stream)).unwrap() > 0 {}
    assert!(rope == payload);
    assert_eq!(kind(now(rope.receive_from_when_room(&mut stream))), Ok(0));
}

/// A rope that holds nothing, as far as anybody sees, may be replaced by another.
#[test]
fn an_empty_rope_holds_nothing_back_for_want_of_room() {
    let pool = pool_of(16);
    let payload = pattern(8, 100_000);
    let mut stream = pieces(&payload, 20_000, false);
    // From here on a first read asks for more than a segment on the heap.
    let mut rope = Rope::in_pool(&pool);
    while rope.len() < 40_000 {
        now(rope.receive_from(&mut stream)).unwrap();
    }
    let mut received = rope.to_vec();
    drop(rope);
    let held = pool.try_room(16 * PAGE).unwrap();
    for attempt in 0..5 {
        let mut rope = Rope::in_pool(&pool);
        match now(rope.receive_from(&mut stream)) {
            Ok(count) => assert_eq!((count, rope.len()), (1, 1), "{attempt}"),
            Err(error) => panic!("{attempt}: {error}"),
        }
        assert_eq!(pool.stats().fallbacks, 0);
        received.extend_from_slice(&rope.to_vec());
    }
    // One that holds something keeps the byte, and its bytes are taken off without it.
    let mut rope = Rope::in_pool(&pool);
    assert_eq!(now(rope.receive_from(&mut stream)).unwrap(), 1);
    assert_eq!(kind(now(rope.receive_from(&mut stream))), Err(ErrorKind::OutOfMemory));
    received.extend_from_slice(&rope.split_to(1).to_vec());
    drop(held);
    while now(rope.receive_from(&mut stream)).is_ok_and(|count| count > 0) {
        received.extend_from_slice(&rope.split_to(rope.len()).to_vec());
    }
    assert!(received == payload, "{} of {}", received.len(), payload.len());
}

#[tokio::test]
async fn room_is_waited_for() {
    let pool = pool_of(256);
    let payload = pattern(4, 16 * MIB);
    let mut stream = pieces(&payload, 10_000, true);
    let (mut to, mut from) = duplex(MIB);
    let mut held = Rope::in_pool(&pool);
    held.extend_from_slice(&[0; MIB]);
    let receive = async {
        let mut rope = Rope::in_pool(&pool);
        while rope.receive_from_when_room(&mut stream).await.unwrap() > 0 {
            if rope.len() > MIB / 4 {
                to.write_all_buf(&mut rope).await.unwrap();
            }
        }
        to.write_all_buf(&mut rope).await.unwrap();
        drop(to);
    };
    let check = async {
        let early = timeout(SOON, from.read_u8()).await;
        assert!(early.is_err(), "the pool is full");
        assert_eq!(pool.stats().waiting, 1);
        drop(held);
        let mut received = Vec::new();
        from.read_to_end(&mut received).await.unwrap();
        assert!(received == payload);
    };
    timeout(LATE, async { tokio::join!(receive, check) }).await.unwrap();
    let stats = pool.stats();
    assert_eq!((stats.in_use, stats.reserved, stats.waiting, stats.fallbacks), (0, 0, 0, 0));
}

#[test]
fn a_wait_that_is_dropped_loses_nothing_and_leaves_the_queue() {
    let pool = pool_of(1);
    let mut held = Rope::in_pool(&pool);
    held.extend_from_slice(b"all of it");
    let mut stream = &b"in the end"[..];
    let mut rope = Rope::in_pool(&pool);
    now(rope.receive_exact_from(&mut stream, 1)).unwrap(); // a first read needs no page
    let mut more = Rope::in_pool(&pool);
    more.push(vec![0; 8192]); // more than is copied to the front of a page
    for _ in 0..3 {
        assert!(poll(more.receive_from_when_room(&mut stream)).is_pending());
        assert_eq!((pool.stats().waiting, pool.stats().reserved), (0, 0));
    }
    drop(held);
    while now(more.receive_from_when_room(&mut stream)).unwrap() > 0 {}
    more.advance(8192);
    assert_eq!(more, b"n the end");
}

#[test]
fn dropped_at_every_await_it_loses_nothing() {
    let payload = pattern(5, 100_000);
    for (piece, limit) in [(1, 5000), (777, 1000), (64 << 10, 30_000)] {
        let pool = pool_of(16);
        let (mut rope, mut received) = (Rope::in_pool(&pool), Vec::new());
        rope.set_limit(limit);
        let bytes = &payload[..payload.len().min(20_000 * piece)];
        let mut stream = pieces(bytes, piece, true);
        loop {
            // Dropped after one poll, each time.
            match poll(rope.receive_from_when_room(&mut stream)) {
                Poll::Ready(Ok(0)) => break,
                Poll::Ready(Err(_)) => received.extend_from_slice(&rope.split_to(rope.len()).to_vec()),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => assert_eq!(pool.stats().waiting, 0),
            }
        }
        received.extend_from_slice(&rope.to_vec());
        assert!(received == bytes, "pieces of {piece}: {} of {}", received.len(), bytes.len());
    }
}

#[test]
fn a_read_that_waits_holds_nothing() {
    let pool = Pool::new().unwrap();
    let (_here, mut there) = duplex(10);
    let mut rope = Rope::in_pool(&pool);
    assert!(poll(rope.receive_from(&mut there)).is_pending());
    assert_eq!(pool.stats().in_use, 0);
}

#[test]
fn exactly_so_many_and_frames() {
    let payload = pattern(6, 10_000);
    for slow in [false, true] {
        let mut stream = pieces(&payload, 999, slow);
        let mut rope = Rope::new();
        let ready = |rope: &mut Rope, stream: &mut Pieces<'_>, count: usize| {
            let have = rope.len();
            loop {
                if let Poll::Ready(done) = poll(rope.receive_exact_from(stream, count - (rope.len() - have)))
                {
                    return done;
                }
            }
        };
        ready(&mut rope, &mut stream, 0).unwrap();
        ready(&mut rope, &mut stream, 5000).unwrap();
        assert!(rope == payload[..5000] && stream.bytes.len() == 5000);
        let error = ready(&mut rope, &mut stream, 5001).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert!(rope == payload);
    }
    let codec = RopeCodec::new(100);
    let mut wire = Rope::new();
    for len in [0, 1, 100] {
        wire.append(codec.wrap(Rope::from(payload[..len].to_vec())).unwrap());
    }
    let wire = wire.to_vec();
    let (mut stream, mut rope) = (pieces(&wire, 1, false), Rope::new());
    for len in [0, 1, 100] {
        assert_eq!(now(rope.receive_frame_from(&mut stream, &codec)).unwrap().unwrap(), payload[..len]);
    }
    assert!(now(rope.receive_frame_from(&mut stream, &codec)).unwrap().is_none());
    let mut cut = &b"\0\0\0\x05fou"[..];
    let error = now(rope.receive_frame_from(&mut cut, &codec)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    let error = now(Rope::new().receive_frame_from(&mut &b"\0\0\0\x65"[..], &codec)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}

#[test]
fn every_receive_delivers_what_was_held_back_first() {
    let (mut peer, socket) = std::os::unix::net::UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    for ropes in [Rope::new as fn() -> Rope, || Rope::in_pool(&Pool::new().unwrap())] {
        let (mut rope, mut stream) = holding_back(ropes());
        assert_eq!(now(rope.receive_from(&mut stream)).unwrap(), 1);
        assert_eq!(now(rope.receive_from(&mut stream)).unwrap(), 1);
        assert_eq!(rope, b"abc");

        let (mut rope, _) = holding_back(ropes());
        assert_eq!(rope.readv_up_to(&socket, 0).unwrap(), 0);
        assert_eq!(rope.readv_from(&socket).unwrap(), 1);
        assert_eq!(kind(rope.readv_from(&socket)), Err(ErrorKind::WouldBlock));
        assert_eq!(rope, b"ab");

        let (mut rope, _) = holding_back(ropes());
        assert_eq!(rope.recvmsg_from(&socket, 0).unwrap().bytes, 1);
        peer.write_all(b"!").unwrap();
        assert_eq!(rope.recvmsg_from(&socket, 0).unwrap().bytes, 1);
        assert_eq!(rope, b"ab!");

        let (mut rope, mut stream) = holding_back(ropes());
        rope.set_limit(1);
        assert_eq!(kind(rope.readv_from(&socket)), Err(ErrorKind::QuotaExceeded));
        assert_eq!(kind(rope.recvmsg_from(&socket, 0).map(|got| got.bytes)), Err(ErrorKind::QuotaExceeded));
        rope.set_limit(2);
        assert_eq!(kind(now(rope.receive_from(&mut stream))), Ok(1));
        assert_eq!(kind(now(rope.receive_from(&mut stream))), Err(ErrorKind::QuotaExceeded));
        assert_eq!(stream, b"");

        // `read_buf` of a stream goes on as well, and a limit without room for both is one without room.
        let (mut rope, mut stream) = holding_back(ropes());
        assert_eq!(now(stream.read_buf(&mut rope)).unwrap(), 1);
        assert_eq!(rope, b"abc");
    }
}

#[tokio::test]
async fn sockets_deliver_what_was_held_back_without_waiting() {
    let (here, there) = UnixStream::pair().unwrap();
    let (mut rope, _) = holding_back(Rope::new());
    assert_eq!(timeout(LATE, there.read_rope(&mut rope)).await.unwrap().unwrap(), 1);
    let (mut rope, _) = holding_back(Rope::new());
    assert_eq!(timeout(LATE, there.when_room().read_rope(&mut rope)).await.unwrap().unwrap(), 1);
    here.write_all_rope(&mut Rope::from("c")).await.unwrap();
    assert_eq!(there.read_rope(&mut rope).await.unwrap(), 1);
    assert_eq!(rope, b"abc");
}

#[cfg(feature = "http-body")]
#[test]
fn a_body_comes_behind_what_was_held_back() {
    let (mut rope, _) = holding_back(Rope::new());
    now(rope.receive_body(Rope::from("c"))).unwrap();
    assert_eq!(rope, b"abc");
    let (mut rope, _) = holding_back(Rope::new());
    rope.set_limit(2);
    now(rope.receive_body(Rope::from("c"))).unwrap_err();
}

#[cfg(feature = "compio")]
#[test]
fn what_is_lent_lies_behind_what_was_held_back() {
    use compio_buf::IoBufMut;
    let (mut rope, _) = holding_back(Rope::new());
    let mut lent = rope.lend(10).unwrap();
    lent.extend_from_slice(b"c").unwrap();
    rope.take_back(lent);
    assert_eq!(rope, b"abc");
}

#[test]
fn what_is_held_back_stays_with_the_rope_that_goes_on() {
    let rest = |mut rope: Rope, mut stream: &[u8]| {
        rope.set_limit(usize::MAX);
        while now(rope.receive_from(&mut stream)).unwrap() > 0 {}
        rope.to_vec()
    };
    let (rope, stream) = holding_back(Rope::new());
    assert_eq!(rest(rope.clone(), b""), b"a");
    assert_eq!(rest(rope.slice(..), b""), b"a");
    assert_eq!(rest(rope, stream), b"abc");
    let (mut rope, stream) = holding_back(Rope::new());
    assert_eq!(rest(rope.split_to(1), b""), b"a");
    assert_eq!(rest(rope, stream), b"bc");
    let (mut rope, stream) = holding_back(Rope::new());
    assert_eq!(rest(rope.split_off(0), b""), b"a");
    assert_eq!(rest(rope, stream), b"bc");
    let (mut rope, stream) = holding_back(Rope::new());
    rope.clear();
    assert_eq!(rest(rope, stream), b"bc");
    // A header is put in front.
    let (rope, stream) = holding_back(Rope::new());
    let mut all = Rope::from("header ");
    all.append(rope);
    assert_eq!(rest(all, stream), b"header abc");
    let (rope, stream) = holding_back(Rope::new());
    let mut fresh = Rope::new();
    fresh.push_front(rope);
    assert_eq!(rest(fresh, stream), b"abc");
    let (mut rope, stream) = holding_back(Rope::new());
    rope.append(holding_back(Rope::new()).0);
    assert_eq!(rest(rope, stream), b"aabbc");
}

/// Gives an error each other time, panics or cheats.
struct Hostile(u8, u8);

impl AsyncRead for Hostile {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.1 += 1;
        match self.0 {
            0 if self.1 % 2 == 0 => into.put_slice(b"lost, and the reader knows it"),
            0 => return Poll::Ready(Err(ErrorKind::ConnectionReset.into())),
            1 => panic!("a reader's own"),
            _ => *into = ReadBuf::new(Box::leak(Box::new([7; 10]))),
        }
        into.set_filled(into.filled().len().min(into.capacity()));
        if self.0 == 2 {
            into.set_filled(10);
        }
        Poll::Ready(Ok(()))
    }
}

#[test]
fn readers_that_fail_panic_or_cheat() {
    for lead in [0, 10_000] {
        let pool = Pool::new().unwrap();
        let mut rope = Rope::in_pool(&pool);
        rope.extend_from_slice(&vec![7; lead]);
        let before = pool.stats().in_use;
        let mut fails = Hostile(0, 0);
        assert_eq!(kind(now(rope.receive_from(&mut fails))), Err(ErrorKind::ConnectionReset));
        assert_eq!((rope.len(), pool.stats().in_use), (lead, before));
        assert_eq!(kind(now(rope.receive_from(&mut fails))), Ok(29));
        for kind in [1, 2] {
            let length = rope.len();
            let read = catch_unwind(AssertUnwindSafe(|| now(rope.receive_from(&mut Hostile(kind, 0)))));
            assert!(read.is_err());
            assert_eq!(rope.len(), length);
        }
        assert_eq!(kind(now(rope.receive_from(&mut fails))), Err(ErrorKind::ConnectionReset));
        drop(rope);
        assert_eq!(pool.stats().in_use, 0);
    }
}

#[test]
fn an_error_comes_behind_what_was_held_back() {
    let (mut rope, mut stream) = holding_back(Rope::new());
    assert_eq!(kind(now(rope.receive_from(&mut Hostile(0, 0)))), Ok(1));
    assert_eq!(kind(now(rope.receive_from(&mut Hostile(0, 0)))), Err(ErrorKind::ConnectionReset));
    assert_eq!(rope, b"ab");
    while now(rope.receive_from(&mut stream)).unwrap() > 0 {}
    assert_eq!(rope, b"abc");
}

/// The future may be sent to another thread, and the reader may be a trait object.
#[test]
fn it_can_be_spawned() {
    fn sendable<T: Send>(_: &T) {}
    let mut reader: Box<dyn AsyncRead + Send + Unpin> = Box::new(&b"dyn"[..]);
    let mut rope = Rope::new();
    let receive = rope.receive_from_when_room(&mut *reader);
    sendable(&receive);
    assert_eq!(now(receive).unwrap(), 3);
}

/// Wakes nobody, but panics.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker that panics");
    }
}

/// Brings 5 000 bytes. Meanwhile room begins to be waited for, with a waker that panics.
struct Contended<'a>(&'a Pool, Option<RoomFuture>);

impl AsyncRead for Contended<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        assert!(self.0.try_room(PAGE).is_err(), "the receive has all pages");
        let mut waiting = self.0.wait_for_room(12 * PAGE);
        assert!(Pin::new(&mut waiting).poll(&mut Context::from_waker(&Arc::new(Panics).into())).is_pending());
        self.1 = Some(waiting);
        into.put_slice(&[1; 5000]);
        Poll::Ready(Ok(()))
    }
}

/// The pages that a receive gives back are another rope's from then on, whatever the waker does.
#[test]
fn a_waker_that_panics_leaves_each_page_to_one_rope() {
    let pool = pool_of(16);
    let mut rope = Rope::in_pool(&pool);
    let mut contended = Contended(&pool, None);
    let _panic = catch_unwind(AssertUnwindSafe(|| now(rope.receive_from(&mut contended))));
    assert_eq!(rope, [1; 5000]);

    let mut other = Rope::in_room(now(contended.1.unwrap()).unwrap());
    let bytes = pattern(1, 12 * PAGE);
    other.extend_from_slice(&bytes);
    while now(rope.receive_from(&mut tokio::io::repeat(2))).is_ok() {}
    assert!(other == bytes, "two ropes have the same pages");
    drop((rope, other));
    assert_eq!((pool.stats().in_use, pool.stats().reserved), (0, 0));
}
