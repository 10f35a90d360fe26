//! A pool at its capacity: who waits, in which order, and that nobody is forgotten.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test fails by panicking

use std::future::Future;
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use ropewalk::{Pool, Rope, Waiting};

const PAGE: usize = 4096;

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Somebody who waits, and how often they were woken.
struct Someone {
    waiting: Waiting,
    woken: Arc<Count>,
}

impl Someone {
    fn new(pool: &Pool, bytes: usize) -> Someone {
        Someone { waiting: pool.wait_for_room(bytes), woken: Arc::default() }
    }

    fn has_turn(&mut self) -> bool {
        let waker = Waker::from(Arc::clone(&self.woken));
        Pin::new(&mut self.waiting).poll(&mut Context::from_waker(&waker)).is_ready()
    }

    fn woken(&self) -> usize {
        self.woken.0.swap(0, Ordering::SeqCst)
    }
}

fn pool_of(pages: usize) -> Pool {
    Pool::options().capacity((pages * PAGE) as u64).create().unwrap()
}

fn rope_of(pool: &Pool, pages: usize) -> Rope {
    let mut rope = Rope::in_pool(pool);
    rope.reserve(pages * PAGE).unwrap();
    rope
}

#[test]
fn room_that_is_there_is_not_waited_for() {
    let pool = pool_of(4);
    assert!(Someone::new(&pool, 4 * PAGE).has_turn());
    assert!(Someone::new(&pool, usize::MAX).has_turn(), "more than there is means all of it");
}

#[test]
fn turns_come_in_order_one_at_a_time() {
    let pool = pool_of(4);
    let held = rope_of(&pool, 4);
    let mut line: Vec<Someone> = (0..3).map(|_| Someone::new(&pool, PAGE)).collect();
    assert!(line.iter_mut().all(|someone| !someone.has_turn()));
    assert_eq!(pool.stats().waiting, 3);
    drop(held);
    for at in 0..3 {
        assert_eq!(line[0].woken(), 1, "number {at} is woken");
        assert!(line[1..].iter().all(|someone| someone.woken() == 0));
        assert!(line[1..].iter_mut().all(|someone| !someone.has_turn()), "nobody overtakes");
        assert!(line[0].has_turn());
        line.remove(0);
    }
    assert_eq!(pool.stats().waiting, 0);
}

#[test]
fn a_turn_that_did_not_help_comes_again_after_pages_were_given_back() {
    let pool = pool_of(4);
    let (one, other) = (rope_of(&pool, 2), rope_of(&pool, 2));
    let mut first = Someone::new(&pool, PAGE);
    assert!(!first.has_turn());
    drop(one);
    assert!(first.has_turn());
    assert!(!first.has_turn(), "nothing has changed since");
    let mut second = Someone::new(&pool, PAGE);
    assert!(!second.has_turn(), "the place is kept");
    drop(other);
    assert!(first.has_turn());
    assert!(!second.has_turn());
}

#[test]
fn too_little_is_waited_on() {
    let pool = pool_of(4);
    let (one, other) = (rope_of(&pool, 2), rope_of(&pool, 2));
    let mut greedy = Someone::new(&pool, 3 * PAGE);
    assert!(!greedy.has_turn());
    drop(one);
    assert!(!greedy.has_turn());
    drop(other);
    assert_eq!(greedy.woken(), 2);
    assert!(greedy.has_turn());
}

#[test]
fn who_gives_up_wakes_the_next() {
    let pool = pool_of(2);
    let held = rope_of(&pool, 2);
    let mut line: Vec<Someone> = (0..4).map(|_| Someone::new(&pool, PAGE)).collect();
    assert!(line.iter_mut().all(|someone| !someone.has_turn()));
    drop(held);
    drop(line.remove(1)); // not the first: nobody's turn has come by that
    assert!(line[1..].iter().all(|someone| someone.woken() == 0));
    drop(line.remove(0)); // woken, but gone before it looked
    assert_eq!(line[0].woken(), 1);
    assert!(line[0].has_turn());
}

/// Trimming takes warm pages away for a moment. Whoever looks in that moment must be woken after it.
#[test]
fn trimming_forgets_nobody() {
    let pool = pool_of(1024);
    let trims = AtomicUsize::new(0);
    let done = || trims.load(Ordering::Relaxed) >= 50;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done() {
                let trimmed = pool.trim().unwrap();
                trims.fetch_add(usize::from(trimmed > 0), Ordering::Relaxed);
            }
        });
        while !done() {
            block_on(pool.wait_for_room(1024 * PAGE));
            Rope::in_pool(&pool).extend_from_slice(&[1; 4 * PAGE]);
        }
    });
}

#[test]
fn many_threads_on_one_page_all_get_their_turn() {
    let pool = pool_of(1);
    let turns = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..200 {
                    block_on(rope_with_room(&pool, PAGE)).extend_from_slice(b"mine");
                    turns.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(turns.into_inner(), 16 * 200);
    assert_eq!((pool.stats().waiting, pool.stats().fallbacks), (0, 0));
}

async fn rope_with_room(pool: &Pool, bytes: usize) -> Rope {
    let mut rope = Rope::in_pool(pool);
    let mut turn = pool.wait_for_room(bytes);
    loop {
        (&mut turn).await;
        if rope.reserve(bytes).is_ok() {
            return rope;
        }
    }
}

#[test]
fn the_end_of_a_stream_needs_no_room() {
    let pool = pool_of(1);
    let (mut peer, socket) = UnixStream::pair().unwrap();
    peer.write_all(&[1; PAGE + 1]).unwrap();
    drop(peer);
    let mut rope = Rope::in_pool(&pool);
    assert_eq!(rope.readv_from(&socket).unwrap(), PAGE);
    assert_eq!(rope.readv_from(&socket).unwrap_err().kind(), ErrorKind::OutOfMemory);
    let mut rest = Rope::new();
    assert_eq!(rest.readv_from(&socket).unwrap(), 1);
    assert_eq!(rope.readv_from(&socket).unwrap(), 0);
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
