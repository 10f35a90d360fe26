//! A pool at capacity: the order in which waiters are served, and that each one is.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test fails by panicking

use std::future::Future;
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use ropewalk::{Pool, Room, RoomFuture, Rope};

const PAGE: usize = 4096;

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A waiter, and how often it was woken.
struct Waiter {
    future: RoomFuture,
    woken: Arc<Count>,
}

impl Waiter {
    fn new(pool: &Pool, pages: usize) -> Waiter {
        Waiter { future: pool.wait_for_room(pages * PAGE), woken: Arc::default() }
    }

    fn poll(&mut self) -> Option<Room> {
        let waker = Waker::from(Arc::clone(&self.woken));
        match Pin::new(&mut self.future).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(room) => Some(room.unwrap()),
            Poll::Pending => None,
        }
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
fn room_that_is_there_is_reserved_at_once() {
    let pool = pool_of(4);
    let room = Waiter::new(&pool, 4).poll().unwrap();
    assert_eq!(
        (room.len(), pool.stats().reserved, pool.stats().in_use),
        (4 * PAGE as u64, 4 * PAGE as u64, 0)
    );
    assert_eq!(Rope::in_pool(&pool).reserve(1).unwrap_err().kind(), ErrorKind::OutOfMemory);
    assert!(pool.try_room(1).is_err());
    drop(room);
    assert_eq!(pool.stats().reserved, 0);
    rope_of(&pool, 4);
}

#[test]
fn more_than_the_capacity_is_an_error_at_once() {
    let pool = pool_of(4);
    for bytes in [4 * PAGE + 1, usize::MAX / 2, usize::MAX] {
        let error = block_on(pool.wait_for_room(bytes)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert!(error.to_string().contains("capacity of 16.0 KiB"), "{error}");
        assert_eq!(pool.try_room(bytes).unwrap_err().kind(), ErrorKind::OutOfMemory);
    }
    assert!(block_on(pool.wait_for_room(0)).unwrap().is_empty());
    assert_eq!((pool.stats().waiting, pool.stats().reserved), (0, 0));
}

#[test]
fn a_rope_is_filled_from_its_room_though_the_pool_is_full() {
    let pool = pool_of(64);
    let room = pool.try_room(16 * PAGE).unwrap();
    let _others = rope_of(&pool, 48);
    assert!(Rope::in_pool(&pool).reserve(1).is_err());
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let payload: Vec<u8> = (0..16 * PAGE).map(|at| (at % 251) as u8).collect();
    let mut rope = Rope::in_room(room);
    // Little at a time: spare pages are freed after each read, and stay reserved.
    for piece in payload.chunks(5000) {
        peer.write_all(piece).unwrap();
        let end = rope.len() + piece.len();
        while rope.len() < end {
            rope.readv_from(&socket).unwrap();
        }
        let stats = pool.stats();
        assert_eq!(stats.in_use + stats.reserved, stats.capacity);
    }
    peer.write_all(b"!").unwrap();
    assert_eq!(rope.readv_from(&socket).unwrap_err().kind(), ErrorKind::OutOfMemory);
    assert!(rope == payload && pool.stats().fallbacks == 0);
    drop(rope);
    assert_eq!((pool.stats().in_use, pool.stats().reserved), (48 * PAGE as u64, 0));
}

#[test]
fn waiters_are_served_in_order() {
    let pool = pool_of(16);
    let mut held: Vec<Rope> = (0..16).map(|_| rope_of(&pool, 1)).collect();
    let mut waiters: Vec<Waiter> = (0..3).map(|_| Waiter::new(&pool, 2)).collect();
    assert!(waiters.iter_mut().all(|waiter| waiter.poll().is_none()));
    assert_eq!(pool.stats().waiting, 3);
    let mut rooms = Vec::new();
    for _ in 0..3 {
        held.pop();
        assert!(waiters.iter().all(|waiter| waiter.woken() == 0));
        held.pop();
        assert_eq!(waiters[0].woken(), 1);
        assert!(waiters[1..].iter_mut().all(|waiter| waiter.woken() == 0 && waiter.poll().is_none()));
        rooms.push(waiters.remove(0).poll().unwrap());
    }
    assert_eq!((pool.stats().waiting, pool.stats().reserved), (0, 6 * PAGE as u64));
}

#[test]
fn what_was_granted_is_held_until_it_is_polled_or_dropped() {
    let pool = pool_of(4);
    let held = rope_of(&pool, 4);
    let (mut first, mut second) = (Waiter::new(&pool, 4), Waiter::new(&pool, 4));
    assert!(first.poll().is_none() && second.poll().is_none());
    drop(held);
    assert_eq!((first.woken(), second.woken()), (1, 0));
    assert!(Rope::in_pool(&pool).reserve(1).is_err(), "it is reserved already");
    drop(first);
    assert_eq!(second.woken(), 1);
    drop(second.poll().unwrap());
    assert_eq!((pool.stats().waiting, pool.stats().reserved), (0, 0));
}

#[test]
fn a_waiter_that_leaves_lets_the_next_one_pass() {
    let pool = pool_of(64);
    let held = rope_of(&pool, 60);
    let (mut large, mut small) = (Waiter::new(&pool, 64), Waiter::new(&pool, 9));
    assert!(large.poll().is_none() && small.poll().is_none());
    drop(large);
    assert_eq!(small.woken(), 0);
    drop(held);
    assert!(small.poll().is_some());
}

#[test]
fn a_large_request_does_not_stop_small_ones_and_is_served() {
    let pool = pool_of(64);
    let mut held: Vec<Rope> = (0..64).map(|_| rope_of(&pool, 1)).collect();
    let mut large = Waiter::new(&pool, 48);
    assert!(large.poll().is_none());
    let mut served = 0;
    while held.pop().is_some() {
        let mut small = Waiter::new(&pool, 1);
        served += usize::from(small.poll().is_some());
        if large.woken() > 0 {
            break;
        }
    }
    assert!(served > 40, "{served}");
    assert_eq!(large.poll().unwrap().len(), 48 * PAGE as u64);
}

#[test]
fn fragmentation_starves_no_waiter() {
    let pool = pool_of(16);
    let mut held: Vec<Rope> = (0..16).map(|_| rope_of(&pool, 1)).collect();
    let mut waiter = Waiter::new(&pool, 2);
    assert!(waiter.poll().is_none());
    // No two that are adjacent.
    for at in (0..8).rev() {
        held.remove(2 * at);
    }
    let mut rope = Rope::in_room(waiter.poll().unwrap());
    rope.extend_from_slice(&[7; 2 * PAGE]);
    assert_eq!(pool.stats().fallbacks, 0);
}

/// Trimming takes idle pages away for a moment, which must neither refuse nor forget anybody.
#[test]
fn trimming_refuses_and_forgets_no_waiter() {
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
            drop(block_on(pool.wait_for_room(1024 * PAGE)).unwrap());
            drop(pool.try_room(1024 * PAGE).unwrap());
            Rope::in_pool(&pool).extend_from_slice(&[1; 4 * PAGE]);
            assert_eq!(pool.stats().fallbacks, 0);
        }
    });
}

#[test]
fn many_threads_on_one_page_are_all_served() {
    let pool = pool_of(1);
    let served = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..200 {
                    Rope::in_room(block_on(pool.wait_for_room(PAGE)).unwrap()).extend_from_slice(b"mine");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(served.into_inner(), 16 * 200);
    assert_eq!((pool.stats().waiting, pool.stats().fallbacks, pool.stats().reserved), (0, 0, 0));
}

/// Threads that want anything up to everything, some of which change their minds.
#[test]
fn requests_of_all_sizes_are_all_served() {
    let pool = pool_of(64);
    thread::scope(|scope| {
        for thread in 0..8 {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..300 {
                    let pages = 1 + (thread * 31 + round * 7) % 64;
                    if round % 5 == 0 {
                        let mut waiter = Waiter::new(pool, pages);
                        drop(waiter.poll());
                        continue;
                    }
                    let mut rope = Rope::in_room(block_on(pool.wait_for_room(pages * PAGE)).unwrap());
                    rope.extend_from_slice(&vec![1; (pages - round % 2) * PAGE]);
                    assert_eq!(pool.stats().fallbacks, 0);
                }
            });
        }
    });
    let stats = pool.stats();
    assert_eq!((stats.waiting, stats.reserved, stats.in_use), (0, 0, 0));
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

/// Uses its pool when it is dropped, on another thread, so that a lock that is held does not stop this one for good.
struct UsesPool(Pool);

impl Wake for UsesPool {
    fn wake(self: Arc<Self>) {}
}

impl Drop for UsesPool {
    fn drop(&mut self) {
        let (pool, (answer, answered)) = (self.0.clone(), channel());
        thread::spawn(move || answer.send(pool.stats().in_use));
        answered.recv_timeout(Duration::from_secs(60)).expect("the waker is dropped under the pool's lock");
    }
}

/// A waker may be the last reference to a task, whose ropes are dropped with it.
#[test]
fn a_waker_may_use_the_pool_when_it_is_dropped() {
    let pool = pool_of(4);
    let full = rope_of(&pool, 4);
    for again in [false, true] {
        let mut future = pool.wait_for_room(PAGE);
        let waker = Arc::new(UsesPool(pool.clone())).into();
        assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending());
        drop(waker);
        if again {
            assert!(Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        drop(future);
    }
    drop(full);
}

/// Wakes nobody, but panics.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker that panics");
    }
}

/// A future that waits for room, with a waker that panics.
fn panicking(pool: &Pool, pages: usize) -> RoomFuture {
    let mut future = pool.wait_for_room(pages * PAGE);
    assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&Arc::new(Panics).into())).is_pending());
    future
}

#[test]
fn a_waker_that_panics_keeps_no_other_waiter_from_being_woken() {
    let pool = pool_of(4);
    let full = rope_of(&pool, 4);
    let first = panicking(&pool, 1);
    let mut second = Waiter::new(&pool, 1);
    assert!(second.poll().is_none());
    let _panic = catch_unwind(AssertUnwindSafe(|| drop(full)));
    assert_eq!(second.woken(), 1);
    drop((first, second));
    assert_eq!((pool.stats().reserved, pool.stats().in_use), (0, 0));
}
