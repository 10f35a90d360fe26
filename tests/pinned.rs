//! A leak by small slices can be seen in a pool's statistics.
#![allow(clippy::unwrap_used)] // a test may panic

use std::thread::sleep;
use std::time::Duration;

use bytes::Bytes;
use ropewalk::{Pool, Rope};

const PAYLOAD: usize = 1 << 20;

fn payload(pool: &Pool) -> Rope {
    let mut rope = Rope::in_pool(pool);
    rope.extend_from_slice(&[7; PAYLOAD]);
    rope
}

#[test]
fn pages_of_small_slices_are_counted_until_they_are_dropped() {
    let pool = Pool::new().unwrap();
    let page = pool.stats().page_size;
    let view = payload(&pool).finalize().unwrap();
    assert_eq!(pool.stats().pinned, 0);
    // A tenth of a page is enough, and so is a slice that fills its pages.
    let [tenth, large] = [view.slice(..page as usize / 10 + 1), view.slice(page as usize..100_000)];
    assert_eq!(pool.stats().pinned, 0);
    let small: Vec<_> = (0..10).map(|at| view.slice(at * 50_000..at * 50_000 + 10)).collect();
    assert_eq!(pool.stats().pinned, 10 * page);
    drop((view, tenth, large));
    let stats = pool.stats();
    assert_eq!((stats.in_use, stats.pinned), (10 * page, 10 * page), "they are all that is left");
    // A clone shares the pages, so they count once.
    let clones = small.clone();
    drop(small);
    assert_eq!(pool.stats().pinned, 10 * page);
    drop(clones);
    assert_eq!(pool.stats().pinned, 0);
}

#[test]
fn a_short_rest_of_a_rope_counts_too() {
    let pool = Pool::new().unwrap();
    let mut rope = Rope::in_pool(&pool);
    rope.extend_from_slice(b"short");
    let short = rope.split_to(5);
    assert_eq!(pool.stats().pinned, pool.stats().page_size);
    drop((rope, short));
    assert_eq!(pool.stats().pinned, 0);
}

#[test]
fn the_lowest_use_is_0_in_a_pool_younger_than_its_decay() {
    let pool = Pool::options().decay(Duration::MAX).create().unwrap();
    let rope = payload(&pool);
    assert_eq!((pool.stats().in_use, pool.stats().low), (PAYLOAD as u64, 0));
    drop(rope);
}

/// The slices of a `Bytes` cannot be counted, because `bytes` reports neither how long they are nor when they are
/// dropped. What they pin is in use all the time, however much comes and goes beside it.
#[test]
fn what_slices_of_bytes_pin_stays_in_the_lowest_use() {
    let pool = Pool::options().decay(Duration::from_millis(16)).create().unwrap();
    // One payload is in use at any time, so that `in_use` never shows the leak alone.
    let mut busy = payload(&pool);
    let mut leaked: Vec<Bytes> = Vec::new();
    let mut pass_time = |leaked: &mut Vec<Bytes>, leaks: bool| {
        for _ in 0..40 {
            let next = payload(&pool);
            let segment = std::mem::replace(&mut busy, next).segments().next().unwrap();
            if leaks {
                leaked.push(segment.slice(..10));
            }
            sleep(Duration::from_millis(1));
            let _ = pool.stats();
        }
        pool.stats()
    };
    let before = pass_time(&mut leaked, false);
    assert!(before.low <= before.in_use && before.low < 4 * PAYLOAD as u64, "{before:?}");
    pass_time(&mut leaked, true);
    let leaking = pass_time(&mut leaked, false);
    assert!(leaking.low >= 40 * PAYLOAD as u64, "{leaking:?}");
    assert!(leaking.low <= leaking.in_use, "{leaking:?}");
    leaked.clear();
    drop(leaked);
    sleep(Duration::from_millis(40));
    assert!(pool.stats().low < 4 * PAYLOAD as u64, "{:?}", pool.stats());
}
