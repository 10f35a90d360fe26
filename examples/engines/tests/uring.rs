//! compio's runtime over io_uring. Where the kernel or a sandbox refuses io_uring the tests say so and pass.
#![allow(clippy::unwrap_used)] // a test may panic

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream as Peer};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use compio::driver::DriverType;
use compio::net::TcpStream;
use compio::runtime::Runtime;
use engines::uring::{receive, send, send_zerocopy};
use futures_util::FutureExt;
use ropewalk::{Pool, Rope};
use socket2::SockRef;
use support::{pattern, received};

/// A runtime over io_uring, and both ends of a connection of which the other is blocking.
fn start() -> Option<(Runtime, TcpStream, Peer)> {
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("skipped: io_uring is refused here: {error}");
            return None;
        }
    };
    assert_eq!(runtime.driver_type(), DriverType::IoUring);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = Peer::connect(listener.local_addr().unwrap()).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let stream = runtime.enter(|| TcpStream::from_std(stream).unwrap());
    Some((runtime, stream, peer))
}

#[test]
fn reads_fill_the_pool_without_a_copy() {
    let Some((runtime, mut stream, mut peer)) = start() else { return };
    let pool = Pool::new().unwrap();
    let bytes = pattern(9 << 20);
    let sender = thread::spawn({
        let bytes = bytes.clone();
        move || peer.write_all(&bytes)
    });
    let rope = runtime.block_on(async {
        let mut rope = Rope::in_pool(&pool);
        while receive(&mut stream, &mut rope, 1 << 20).await.unwrap() > 0 {}
        rope
    });
    sender.join().unwrap().unwrap();
    let view = rope.finalize().unwrap();
    assert!(view == bytes);
    assert_eq!((view.copied_bytes(), pool.stats().fallbacks), (0, 0));
}

/// More segments than one call takes, the last ones in pages of the pool.
fn many_segments(pool: &Pool) -> Rope {
    let whole = Bytes::from(pattern(3_000 * 700));
    let mut rope: Rope = (0..3_000).map(|at| whole.slice(at * 700..(at + 1) * 700)).collect();
    rope.append(received(pool, &pattern(2 << 20)));
    assert!(rope.num_segments() > 3_000);
    rope
}

/// Reads all that comes, in a thread.
fn read_all(mut peer: Peer) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut got = Vec::new();
        peer.read_to_end(&mut got).map(|_count| got).unwrap()
    })
}

#[test]
fn more_segments_than_one_call_takes_are_sent() {
    for zerocopy in [false, true] {
        let Some((runtime, mut stream, peer)) = start() else { return };
        let pool = Pool::new().unwrap();
        let rope = many_segments(&pool);
        let expected = rope.to_vec();
        let receiver = read_all(peer);
        runtime.block_on(async {
            if zerocopy {
                send_zerocopy(&mut stream, rope).await.unwrap().await;
            } else {
                send(&mut stream, rope).await.unwrap();
            }
            assert_eq!(pool.stats().in_use, 0, "the kernel has let go of all pages");
            drop(stream);
        });
        assert!(receiver.join().unwrap() == expected);
    }
}

/// Bytes that the send queue takes while the peer reads nothing.
const QUEUED: usize = 128 << 10;

/// Makes the send queue larger than `QUEUED`, and what the peer takes unread smaller. Any `net.core.wmem_max` allows it.
fn queue_in(stream: &TcpStream, peer: &Peer) {
    SockRef::from(stream).set_send_buffer_size(QUEUED).unwrap(); // the kernel doubles it
    SockRef::from(peer).set_recv_buffer_size(QUEUED / 8).unwrap();
}

/// Waits until the pool holds at most `bytes`.
async fn until_held(pool: &Pool, bytes: u64) {
    let start = Instant::now();
    while pool.stats().in_use > bytes {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", pool.stats());
        compio::runtime::time::sleep(Duration::from_millis(10)).await; // completions arrive meanwhile
    }
}

/// The socket refers to the pages of what it has not sent yet: they must not be filled with other bytes.
#[test]
fn pages_of_a_zero_copy_send_are_held_until_the_notification() {
    for waits in [true, false] {
        let Some((runtime, mut stream, peer)) = start() else { return };
        queue_in(&stream, &peer);
        let pool = Pool::new().unwrap();
        let expected = pattern(QUEUED);
        let rope = received(&pool, &expected);
        let receiver = runtime.block_on(async {
            let mut sent = Box::pin(send_zerocopy(&mut stream, rope).await.unwrap());
            compio::runtime::time::sleep(Duration::from_millis(50)).await;
            assert!(sent.as_mut().now_or_never().is_none(), "the peer has not read");
            assert!(pool.stats().in_use >= QUEUED as u64, "{:?}", pool.stats());
            let sent = Some(sent).filter(|_| waits); // else the future is dropped here
            // Other bytes go elsewhere meanwhile.
            drop(received(&pool, &vec![0xff; 4 * QUEUED]));
            assert!(pool.stats().in_use >= QUEUED as u64, "{:?}", pool.stats());
            let receiver = read_all(peer);
            match sent {
                Some(sent) => sent.await,
                None => until_held(&pool, 0).await,
            }
            assert_eq!(pool.stats().in_use, 0);
            drop(stream);
            receiver
        });
        assert!(receiver.join().unwrap() == expected);
    }
}

#[test]
fn a_cancelled_zero_copy_send_keeps_its_pages_until_the_kernel_lets_them_go() {
    let Some((runtime, mut stream, peer)) = start() else { return };
    queue_in(&stream, &peer);
    let pool = Pool::new().unwrap();
    let expected = pattern(32 * QUEUED);
    runtime.block_on(async {
        let rope = received(&pool, &expected);
        // Begun, and dropped while the send queue is full.
        assert!(
            compio::runtime::time::timeout(Duration::from_millis(100), send_zerocopy(&mut stream, rope))
                .await
                .is_err()
        );
        assert!(pool.stats().in_use > 0, "the kernel still refers to what it has queued");
        drop(received(&pool, &vec![0xff; 4 * QUEUED]));
        let receiver = read_all(peer);
        until_held(&pool, 0).await;
        drop(stream);
        let got = receiver.join().unwrap();
        assert!(!got.is_empty() && expected.starts_with(&got), "{} bytes that were not sent", got.len());
    });
}

/// The kernel may write to the memory of a read whose future was dropped: it is in use until the kernel says that the
/// read is cancelled. The rope keeps what came before, and goes on elsewhere.
#[test]
fn a_cancelled_read_keeps_its_memory_until_the_kernel_lets_it_go() {
    let Some((runtime, mut stream, mut peer)) = start() else { return };
    let pool = Pool::new().unwrap();
    let mut rope = received(&pool, b"before, ");
    let held = pool.stats().in_use;
    runtime.block_on(async {
        assert!(receive(&mut stream, &mut rope, 1 << 20).now_or_never().is_none()); // begun, then dropped
        assert!(pool.stats().in_use >= held + (1 << 20), "the kernel may still write there");
        until_held(&pool, held).await;
        peer.write_all(b"behind").unwrap();
        while rope.len() < 14 {
            assert!(receive(&mut stream, &mut rope, 1 << 20).await.unwrap() > 0);
        }
    });
    assert_eq!(rope, b"before, behind");
    drop((stream, runtime, rope));
    assert_eq!(pool.stats().in_use, 0);
}
