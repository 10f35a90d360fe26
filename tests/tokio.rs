//! Ropes on tokio's sockets and pipes, and through its traits.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test fails by panicking

use std::future::Future;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ropewalk::{Pool, ReadRope, Rope, WriteRope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;

const PAGE: usize = 4096;
const SOON: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_secs(60);

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (here, listener.accept().await.unwrap().0)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// A rope of many small segments.
fn pieces(bytes: &[u8]) -> Rope {
    bytes.chunks(777).map(<[u8]>::to_vec).collect()
}

fn pool_of(pages: usize) -> Pool {
    Pool::options().capacity((pages * PAGE) as u64).create().unwrap()
}

/// A pool of one page, and the rope that has it.
fn full_pool() -> (Pool, Rope) {
    let pool = pool_of(1);
    let mut held = Rope::in_pool(&pool);
    held.extend_from_slice(b"all of it");
    (pool, held)
}

/// Two ends; in the second there are five bytes to read.
fn greeted() -> (UnixStream, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    here.try_write(b"hello").unwrap();
    (here, there)
}

async fn read_to_end(from: &impl ReadRope, pool: &Pool) -> Rope {
    let mut rope = Rope::in_pool(pool);
    while from.read_rope(&mut rope).await.unwrap() > 0 {}
    rope
}

/// Sends a few MiB from one end to the other; `to` is closed by dropping it.
async fn passes(to: impl WriteRope, from: impl ReadRope) {
    let pool = Pool::new().unwrap();
    let payload = pattern(3 << 20);
    let mut outgoing = pieces(&payload);
    let send = async move {
        to.write_all_rope(&mut outgoing).await.unwrap();
        assert!(outgoing.is_empty());
        assert_eq!(to.write_rope(&mut outgoing).await.unwrap(), 0);
    };
    let ((), received) = tokio::join!(send, read_to_end(&from, &pool));
    assert!(*received.finalize().unwrap() == payload[..]);
    assert_eq!(pool.stats().in_use, 0);
}

#[tokio::test]
async fn every_kind_of_stream_and_half_passes_ropes() {
    let (to, from) = tcp_pair().await;
    passes(to, from).await;
    let (to, from) = UnixStream::pair().unwrap();
    passes(to, from).await;
    let (to, from) = pipe::pipe().unwrap();
    passes(to, from).await;
    let (to, from) = tcp_pair().await;
    passes(to.into_split().1, from.into_split().0).await;
    let (to, from) = UnixStream::pair().unwrap();
    passes(to.into_split().1, from.into_split().0).await;
}

#[tokio::test]
async fn borrowed_halves_echo() {
    let (mut here, mut there) = tcp_pair().await;
    let payload = pattern(1 << 20);
    let echo = async {
        let (from, to) = there.split();
        let mut rope = Rope::new();
        while from.read_rope(&mut rope).await.unwrap() > 0 {
            to.write_all_rope(&mut rope).await.unwrap();
        }
    };
    let talk = async {
        let (from, mut to) = here.split();
        let mut back = Rope::new();
        let mut sent = pieces(&payload);
        let (done, ()) = tokio::join!(from.read_rope_exact(&mut back, payload.len()), async {
            to.write_all_rope(&mut sent).await.unwrap();
            to.shutdown().await.unwrap();
        });
        done.unwrap();
        assert!(back == payload);
    };
    tokio::join!(echo, talk);
}

#[tokio::test]
async fn exactly_so_much_and_no_more() {
    let (here, there) = UnixStream::pair().unwrap();
    here.write_all_rope(&mut Rope::from("fourteen bytes")).await.unwrap();
    drop(here);
    let mut rope = Rope::new();
    there.read_rope_exact(&mut rope, 8).await.unwrap();
    assert_eq!(rope, b"fourteen");
    there.read_rope_exact(&mut rope, 0).await.unwrap();
    assert_eq!(there.read_rope_up_to(&mut rope, 0).await.unwrap(), 0);
    assert_eq!(there.read_rope_up_to(&mut rope, 1).await.unwrap(), 1);
    let error = there.read_rope_exact(&mut rope, 6).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert_eq!(error.to_string(), "the stream ended after 5 of 6 bytes");
    assert_eq!(rope, b"fourteen bytes", "what has arrived stays");
}

#[tokio::test]
async fn the_limit_is_an_error_that_loses_nothing() {
    let (here, there) = UnixStream::pair().unwrap();
    here.try_write(b"12345").unwrap();
    let mut rope = Rope::new();
    rope.set_limit(3);
    let error = there.read_rope_exact(&mut rope, 5).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
    rope.set_limit(5);
    there.read_rope(&mut rope).await.unwrap();
    assert_eq!(rope, b"12345");
}

#[tokio::test]
async fn cursors_send_without_changing_the_rope() {
    let payload = pattern(1 << 20);
    let rope = Arc::new(pieces(&payload));
    let mut readers = JoinSet::new();
    for _ in 0..3 {
        let (to, from) = tcp_pair().await;
        let mut cursor = ropewalk::Cursor::new(Arc::clone(&rope));
        let expected = payload.clone();
        readers.spawn(async move { to.write_all_rope(&mut cursor).await.unwrap() });
        readers.spawn(async move { assert!(read_to_end(&from, &Pool::new().unwrap()).await == expected) });
    }
    readers.join_all().await;
    assert!(*rope == payload);
}

fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Both sides are dropped after every single poll, wherever they were.
#[tokio::test]
async fn dropping_a_read_or_a_write_loses_nothing() {
    let (to, from) = UnixStream::pair().unwrap();
    let payload = pattern(2 << 20);
    let mut outgoing = pieces(&payload);
    let mut incoming = Rope::new();
    let (mut writes, mut reads) = (0, 0);
    while incoming.len() < payload.len() {
        let missing = payload.len() - incoming.len();
        writes += usize::from(poll_once(to.write_all_rope(&mut outgoing)).is_none());
        reads += usize::from(poll_once(from.read_rope_exact(&mut incoming, missing)).is_none());
        yield_now().await;
    }
    assert!(writes > 1 && reads > 1, "{writes} writes and {reads} reads were dropped");
    assert!(outgoing.is_empty() && incoming == payload);
}

/// A socket that never runs dry must not keep the other tasks of its thread from running.
#[tokio::test(flavor = "current_thread")]
async fn a_busy_socket_lets_others_run() {
    let (to, from) = UnixStream::pair().unwrap();
    to.try_write(&pattern(50_010)).unwrap();
    let mut rope = Rope::new();
    from.read_rope_up_to(&mut rope, 10).await.unwrap(); // from here on it is known to be ready
    let ran = Arc::new(AtomicBool::new(false));
    let other = tokio::spawn({
        let ran = Arc::clone(&ran);
        async move { ran.store(true, Ordering::Relaxed) }
    });
    for _ in 0..5000 {
        from.read_rope_up_to(&mut rope, 10).await.unwrap();
    }
    assert!(ran.load(Ordering::Relaxed));
    other.await.unwrap();
}

#[tokio::test]
async fn any_other_stream_goes_through_buf_and_buf_mut() {
    let pool = Pool::new().unwrap();
    let payload = pattern(1 << 20);
    let (mut to, mut from) = tokio::io::duplex(10_000);
    let send = async {
        to.write_all_buf(&mut pieces(&payload)).await.unwrap();
        to.write_all_buf(&mut pieces(&payload).cursor()).await.unwrap();
        drop(to);
    };
    let receive = async {
        let mut rope = Rope::in_pool(&pool);
        while from.read_buf(&mut rope).await.unwrap() > 0 {}
        rope
    };
    let ((), received) = tokio::join!(send, receive);
    assert!(received == [&payload[..], &payload[..]].concat());
}

#[tokio::test]
async fn an_idle_read_holds_nothing() {
    let pool = pool_of(256);
    let (_here, there) = tcp_pair().await;
    let mut rope = Rope::in_pool(&pool);
    assert!(timeout(SOON, there.read_rope(&mut rope)).await.is_err());
    assert!(timeout(SOON, there.when_room().read_rope(&mut rope)).await.is_err());
    assert_eq!((pool.stats().in_use, pool.stats().waiting), (0, 0));
}

#[tokio::test]
async fn without_room_a_read_fails_or_waits_as_the_caller_likes() {
    let (pool, held) = full_pool();
    let (_here, there) = greeted();
    let mut rope = Rope::in_pool(&pool);
    let error = there.read_rope(&mut rope).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(error.to_string().contains("capacity"), "{error}");
    {
        let patient = there.when_room();
        let mut waiting = pin!(patient.read_rope(&mut rope));
        assert!(timeout(SOON, &mut waiting).await.is_err());
        assert_eq!(pool.stats().waiting, 1);
        drop(held);
        assert_eq!(timeout(LATE, waiting).await.unwrap().unwrap(), 5);
    }
    assert_eq!(rope, b"hello");
    assert_eq!(pool.stats().waiting, 0);
}

/// A reader that waits returns only the room that it has waited for.
#[tokio::test]
async fn a_reader_keeps_the_room_that_its_rope_was_made_with() {
    let pool = pool_of(64);
    let (here, there) = greeted();
    let mut rope = Rope::in_room(pool.try_room(64 * PAGE).unwrap());
    let reserved = async |rope: &mut Rope| {
        assert_eq!(there.when_room().read_rope_up_to(rope, 5).await.unwrap(), 5);
        let held = pool.stats().reserved + pool.stats().in_use;
        assert_eq!(held, 64 * PAGE as u64);
    };
    reserved(&mut rope).await;
    here.try_write(&[7; 5000]).unwrap();
    reserved(&mut rope).await;
    here.try_write(b"hello").unwrap();
    rope.receive_from_when_room(&mut &b"hello"[..]).await.unwrap();
    assert_eq!(pool.stats().reserved + pool.stats().in_use, 64 * PAGE as u64);
}

#[tokio::test]
async fn a_cancelled_wait_leaves_the_line() {
    let (pool, _held) = full_pool();
    let (_here, there) = greeted();
    let mut rope = Rope::in_pool(&pool);
    assert!(timeout(SOON, there.when_room().read_rope(&mut rope)).await.is_err());
    assert_eq!(pool.stats().waiting, 0);
    assert!(rope.is_empty());
}

/// The end of a stream, room in the rope itself, and a rope outside the pool need no turn.
#[tokio::test]
async fn who_needs_no_room_does_not_wait_behind_those_who_do() {
    let pool = pool_of(2);
    let mut ended = Rope::in_pool(&pool);
    ended.extend_from_slice(&[1; PAGE]);
    let mut roomy = Rope::in_pool(&pool);
    roomy.extend_from_slice(b"much room behind");
    let (first, from_first) = UnixStream::pair().unwrap();
    first.try_write(b"no room for this").unwrap();
    let mut waiter = Rope::in_pool(&pool);
    let patient = from_first.when_room();
    let mut waiting = pin!(patient.read_rope(&mut waiter));
    assert!(timeout(SOON, &mut waiting).await.is_err());

    let (here, there) = greeted();
    drop(here);
    let read = async |rope: &mut Rope| timeout(LATE, there.when_room().read_rope_up_to(rope, 1)).await;
    assert_eq!(read(&mut roomy).await.unwrap().unwrap(), 1);
    assert_eq!(read(&mut Rope::new()).await.unwrap().unwrap(), 1);
    there.read_rope_exact(&mut Rope::new(), 3).await.unwrap();
    assert_eq!(read(&mut ended).await.unwrap().unwrap(), 0);
    assert_eq!(pool.stats().waiting, 1);
    drop(ended);
    assert_eq!(timeout(LATE, waiting).await.unwrap().unwrap(), 16);
}

#[tokio::test]
async fn room_comes_first_to_who_asked_first() {
    let (pool, held) = full_pool();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut readers = JoinSet::new();
    for number in 0..20 {
        let (here, there) = greeted();
        let (mut rope, order) = (Rope::in_pool(&pool), Arc::clone(&order));
        readers.spawn(async move {
            there.when_room().read_rope(&mut rope).await.unwrap();
            order.lock().unwrap().push(number);
            drop((rope, here));
        });
        while pool.stats().waiting <= number {
            yield_now().await;
        }
    }
    drop(held);
    timeout(LATE, readers.join_all()).await.unwrap();
    assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
}

/// A hundred connections through a pool with room for a few: all wait, none is forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_connections_share_a_tiny_pool() {
    let pool = pool_of(4);
    let payload = Arc::new(pattern(200_000));
    let mut tasks = JoinSet::new();
    for _ in 0..100 {
        let (to, from) = UnixStream::pair().unwrap();
        let (pool, payload) = (pool.clone(), Arc::clone(&payload));
        let mut outgoing = pieces(&payload);
        tasks.spawn(async move { to.write_all_rope(&mut outgoing).await.unwrap() });
        tasks.spawn(async move {
            let mut rope = Rope::in_pool(&pool);
            let mut seen = 0;
            while from.when_room().read_rope(&mut rope).await.unwrap() > 0 {
                assert!(rope == payload[seen..seen + rope.len()]);
                seen += rope.len();
                if seen % 3 == 0 {
                    yield_now().await;
                }
                rope.clear();
            }
            assert_eq!(seen, payload.len());
        });
    }
    timeout(LATE, tasks.join_all()).await.expect("a waiter was forgotten");
    let stats = pool.stats();
    assert_eq!((stats.in_use, stats.waiting, stats.fallbacks), (0, 0, 0));
    assert!(stats.peak <= stats.capacity);
}

#[tokio::test]
async fn a_rope_that_was_emptied_holds_no_page_while_it_waits() {
    let (mut here, there) = tcp_pair().await;
    let pool = Pool::new().unwrap();
    let mut rope = Rope::in_pool(&pool);
    let payload = pattern(1 << 20);
    let send = async { here.write_all(&payload).await.unwrap() };
    let receive = async {
        let mut left = payload.len();
        while left > 0 {
            left -= there.read_rope(&mut rope).await.unwrap();
            rope.advance(rope.len());
        }
    };
    tokio::join!(send, receive);
    assert!(timeout(SOON, there.read_rope(&mut rope)).await.is_err());
    assert_eq!(pool.stats().in_use, 0);
    assert!(timeout(SOON, there.when_room().read_rope(&mut rope)).await.is_err());
    assert_eq!(pool.stats().in_use, 0);
}
