//! compio's runtime over io_uring. Where the kernel or a sandbox refuses io_uring the tests say so and pass.
#![allow(clippy::unwrap_used)] // a test may panic

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream as Peer};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use compio::driver::DriverType;
use compio::net::TcpStream;
use compio::runtime::Runtime;
use engines::uring::{receive, send};
use futures_util::FutureExt;
use ropewalk::{Pool, Rope};
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

#[test]
fn more_segments_than_one_call_takes_are_sent() {
    let Some((runtime, mut stream, mut peer)) = start() else { return };
    let pool = Pool::new().unwrap();
    let whole = Bytes::from(pattern(3_000 * 700));
    let mut rope: Rope = (0..3_000).map(|at| whole.slice(at * 700..(at + 1) * 700)).collect();
    rope.append(received(&pool, &pattern(2 << 20)));
    assert!(rope.num_segments() > 3_000);
    let expected = rope.to_vec();
    let receiver = thread::spawn(move || {
        let mut got = Vec::new();
        peer.read_to_end(&mut got).map(|_count| got)
    });
    runtime.block_on(async {
        send(&mut stream, rope).await.unwrap();
        drop(stream);
    });
    assert!(receiver.join().unwrap().unwrap() == expected);
    drop(runtime);
    assert_eq!(pool.stats().in_use, 0);
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
        let start = Instant::now();
        while pool.stats().in_use > held {
            assert!(start.elapsed() < Duration::from_secs(60));
            compio::runtime::time::sleep(Duration::from_millis(10)).await; // the cancellation completes meanwhile
        }
        peer.write_all(b"behind").unwrap();
        while rope.len() < 14 {
            assert!(receive(&mut stream, &mut rope, 1 << 20).await.unwrap() > 0);
        }
    });
    assert_eq!(rope, b"before, behind");
    drop((stream, runtime, rope));
    assert_eq!(pool.stats().in_use, 0);
}
