//! What an operation costs does not grow with the number of segments, the bytes of a tail, or the fragments of a pool.
//!
//! Times are of this thread's CPU, the least of several, and compared with those of a small case; the bounds leave room
//! for caches and noise, but not for a cost that is proportional.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::hint::black_box;
use std::io::Write;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::{Buf, BufMut};
use nix::time::{ClockId, clock_gettime};
use ropewalk::{Pool, Rope};

const PAGE: usize = 4096;

/// A cost that is this many times that of a thousandth grows with the size.
const GROWS: u32 = 60;

fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// CPU time of one of `times` calls, the least of seven rounds.
fn cost(times: u32, mut call: impl FnMut()) -> Duration {
    let round = |_| {
        let start = cpu();
        (0..times).for_each(|_| call());
        (cpu() - start) / times
    };
    (0..7).map(round).min().unwrap().max(Duration::from_nanos(20))
}

fn rope_of(segments: usize) -> Rope {
    (0..segments).map(|_| "s").collect()
}

type Named<T> = (&'static str, T);

type Operation = Named<fn(&mut Rope)>;

type PoolOperation<'a> = Named<&'a dyn Fn(&Pool)>;

/// Each leaves the rope as it was.
const OPERATIONS: &[Operation] = &[
    ("header.append(rope)", |rope| {
        let mut header = Rope::from("h");
        header.append(std::mem::take(rope));
        drop(header.split_to(1));
        *rope = header;
    }),
    ("rope.append(trailer)", |rope| {
        let len = rope.len();
        rope.append(Rope::from("t"));
        rope.truncate(len);
    }),
    ("push_front(rope)", |rope| {
        rope.push_front(rope_of(3));
        rope.advance(3);
    }),
    ("push of a rope", |rope| {
        let len = rope.len();
        rope.push(rope_of(3));
        drop(rope.split_off(len));
    }),
    ("split_to", |rope| {
        let front = rope.split_to(2);
        rope.push_front(front);
    }),
    ("slice in the middle", |rope| drop(black_box(rope.slice(rope.len() / 2..rope.len() / 2 + 5)))),
    ("cursor in the middle", |rope| {
        let mut cursor = rope.cursor();
        cursor.set_position(rope.len() / 2);
        black_box(cursor.copy_to_bytes(3));
    }),
    ("find_from near the end", |rope| {
        black_box(rope.find_from(rope.len() - 20, b"none"));
    }),
    ("starts_with", |rope| {
        black_box(rope.starts_with(b"ssst"));
    }),
    ("last chunk", |rope| {
        black_box(rope.chunks().next_back());
    }),
];

#[test]
fn operations_cost_the_same_on_a_rope_of_many_segments() {
    let mut many = rope_of(300_000);
    let mut few = rope_of(300);
    // What does grow exceeds the bound.
    let clone = |rope: &Rope| cost(1, || drop(black_box(rope.clone())));
    assert!(clone(&many) > clone(&few) * GROWS);
    for (name, operation) in OPERATIONS {
        let small = cost(200, || operation(&mut few));
        let large = cost(200, || operation(&mut many));
        assert!(large < small * GROWS, "{name}: {small:?} with 300 segments, {large:?} with 300 000");
        assert_eq!((few.len(), many.len()), (300, 300_000));
    }
}

/// What is cut off a tail that is being filled costs no more than its own bytes.
#[test]
fn operations_cost_the_same_over_a_long_tail() {
    let pool = Pool::options().capacity(64 << 20).create().unwrap();
    let tail = |len| {
        let mut rope = Rope::in_pool(&pool);
        rope.reserve(2 << 20).unwrap();
        rope.extend_from_slice(&vec![7; len]);
        rope
    };
    let (few, many) = (tail(2 * PAGE), tail((2 << 20) - PAGE));
    let operations: [Named<fn(&Rope)>; 3] = [
        ("copy_to_bytes", |rope| drop(black_box(rope.cursor().copy_to_bytes(64)))),
        ("slice", |rope| drop(black_box(rope.slice(100..200)))),
        ("last chunk", |rope| {
            black_box(rope.chunks().next_back());
        }),
    ];
    for (name, operation) in operations {
        let (small, large) = (cost(500, || operation(&few)), cost(500, || operation(&many)));
        assert!(large < small * 5, "{name}: {small:?} over 2 pages, {large:?} over 511");
    }
}

#[test]
fn a_needle_is_found_in_time_that_grows_with_the_rope_alone() {
    // Each is found at no place but compared for long at many. To move or compare it once a byte would cost ten times as
    // much as the rest.
    const LEN: usize = 64 << 10;
    let cases: [([&str; 2], Vec<u8>, &[u8]); 2] = [
        (["s", "s"], [b"s".repeat(LEN), b"t".to_vec()].concat(), b"st"),
        (["a", "b"], [b"ab".repeat(LEN / 2), b"aa".to_vec()].concat(), b"aa"),
    ];
    for (segments, needle, short) in cases {
        let rope_of = |len: usize| (0..len).map(|at| segments[at % 2]).collect::<Rope>();
        let (few, many) = (rope_of(70_000), rope_of(280_000));
        let (small, large) = (cost(1, || _ = few.find(&needle)), cost(1, || _ = many.find(&needle)));
        assert!(large < small * 12, "{small:?} in 70 000 bytes, {large:?} in 280 000");
        let least = cost(1, || _ = many.find(short));
        assert!(large < least * 5, "{least:?} for 2 bytes, {large:?} for {}", needle.len());
    }
}

#[test]
fn a_byte_at_a_time_costs_the_same_in_any_interface() {
    const BYTES: u32 = 20_000;
    let fill = |put: fn(&mut Rope)| {
        cost(1, || {
            let mut rope = Rope::new();
            (0..BYTES).for_each(|_| put(&mut rope));
            assert_eq!(rope.len(), BYTES as usize);
        })
    };
    let least = fill(|rope| rope.extend_from_slice(b"x"));
    let ways: [Operation; 5] = [
        ("put_u8", |rope| rope.put_u8(b'x')),
        ("write_all", |rope| rope.write_all(b"x").unwrap()),
        ("write!", |rope| write!(rope, "x").unwrap()),
        ("writer", |rope| rope.writer().write_all(b"x").unwrap()),
        ("chunk_mut", |rope| rope.put_bytes(b'x', 1)),
    ];
    for (name, put) in ways {
        let taken = fill(put);
        assert!(taken < least * 40, "{name}: {taken:?}, extend_from_slice {least:?}");
    }
}

/// A pool of which every second page of 120 000 is free.
fn fragmented() -> (Pool, Vec<Rope>) {
    const PAGES: usize = 120_000;
    let pool = Pool::options().capacity((PAGES * PAGE) as u64).create().unwrap();
    // One run, cut into pages: no page is touched.
    let page = |_| {
        let mut rope = Rope::in_pool(&pool);
        rope.reserve(PAGE).unwrap();
        rope
    };
    let mut all: Vec<Rope> = (0..PAGES).map(page).collect();
    let mut at = 0;
    all.retain(|_| {
        at += 1;
        at % 2 == 0
    });
    (pool, all)
}

#[test]
fn pages_cost_the_same_in_a_fragmented_pool() {
    let fresh = Pool::options().capacity(480 << 20).create().unwrap();
    let (pool, held) = fragmented();
    assert!(pool.stats().in_use >= (held.len() * PAGE) as u64);
    let payload = vec![7; 64 << 10];
    let operations: [PoolOperation<'_>; 3] = [
        ("fill and drop 64 KiB", &|pool| Rope::in_pool(pool).extend_from_slice(&payload)),
        ("reserve 300 KiB", &|pool| Rope::in_pool(pool).reserve(300 << 10).unwrap()),
        ("reserve a page", &|pool| Rope::in_pool(pool).reserve(1).unwrap()),
    ];
    for (name, operation) in &operations {
        operation(&fresh);
        operation(&pool);
        let (small, large) = (cost(20, || operation(&fresh)), cost(20, || operation(&pool)));
        assert!(large < small * 40, "{name}: {small:?} in a fresh pool, {large:?} in a fragmented one");
    }
}

#[test]
fn a_refusal_costs_the_same_after_a_request_has_waited() {
    let (pool, _held) = fragmented();
    let left = pool.stats();
    let all = pool.try_room((left.capacity - left.in_use) as usize).unwrap();
    let refused = || drop(Rope::in_pool(&pool).reserve(1).unwrap_err());
    let before = cost(200, refused);
    let mut waiting = Box::pin(pool.wait_for_room(PAGE));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let meanwhile = cost(200, refused);
    drop(waiting);
    let after = cost(200, refused);
    assert!(
        meanwhile.max(after) < before * 30,
        "{before:?} before, {meanwhile:?} meanwhile, {after:?} after"
    );
    drop(all);
}

#[test]
fn a_drop_does_not_wait_for_what_is_due() {
    let idle = |bytes: usize| {
        // Longer than it takes to free all of them, each of which would give a slice back.
        let pool = Pool::options().capacity(512 << 20).decay(Duration::from_millis(100)).create().unwrap();
        Rope::in_pool(&pool).extend_from_slice(&vec![7; bytes]);
        pool
    };
    // A slice is 2 MiB; there are fifty of them.
    let (few, many) = (idle(2 << 20), idle(100 << 20));
    std::thread::sleep(Duration::from_millis(200));
    let one_drop = |pool: &Pool| {
        let rope = {
            let mut rope = Rope::in_pool(pool);
            rope.reserve(1).unwrap();
            rope
        };
        let start = cpu();
        drop(rope);
        (cpu() - start).max(Duration::from_micros(50))
    };
    let (small, large) = (one_drop(&few), one_drop(&many));
    assert!(large < small * 20, "{small:?} with 2 MiB due, {large:?} with 100");
    let warm = many.stats().warm;
    assert!(warm > 50 << 20, "{warm} bytes are left");
}

#[test]
fn waiting_costs_the_same_behind_many_others() {
    let of = |waiters: usize| {
        let pool = Pool::options().capacity((64 * PAGE) as u64).create().unwrap();
        let all = pool.try_room(64 * PAGE).unwrap();
        let mut context = Context::from_waker(Waker::noop());
        let queued: Vec<_> = (0..waiters)
            .map(|_| {
                let mut room = Box::pin(pool.wait_for_room(PAGE));
                assert!(room.as_mut().poll(&mut context).is_pending());
                room
            })
            .collect();
        assert_eq!(pool.stats().waiting as usize, waiters);
        let taken = cost(100, || {
            let mut room = Box::pin(pool.wait_for_room(PAGE));
            assert!(room.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            assert!(room.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        });
        drop((queued, all));
        taken
    };
    let (few, many) = (of(30), of(6_000));
    assert!(many < few * 8, "{few:?} behind 30 others, {many:?} behind 6 000");
}
