//! Views: what is borrowed, mapped and copied, and what happens when the kernel refuses.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, mpsc};
use std::thread;

use bytes::Bytes;
use nix::errno::Errno;

use super::{ERRORS, kernel_is_older_than, pattern};
use crate::pool::Pool;
use crate::rope::Rope;
use crate::sys::mock::{self, Call};
use crate::sys::page_size;
use crate::view::View;

const MIB: usize = 1 << 20;

fn filled(pool: &Pool, bytes: &[u8]) -> Rope {
    let mut rope = Rope::in_pool(pool);
    rope.reserve(bytes.len()).unwrap();
    rope.extend_from_slice(bytes);
    rope
}

/// A rope of `bytes` in runs of this length that do not touch, and what is between them.
fn in_runs(pool: &Pool, bytes: &[u8], len: usize) -> (Rope, Rope) {
    let (mut rope, mut between) = (Rope::in_pool(pool), Rope::in_pool(pool));
    let something = vec![0; pool.page_size()];
    let mut all =
        filled(pool, &bytes.chunks(len).flat_map(|run| [run, &something]).collect::<Vec<_>>().concat());
    for run in bytes.chunks(len) {
        rope.append(all.split_to(run.len()));
        between.append(all.split_to(something.len()));
    }
    (rope, between)
}

fn in_two_places(pool: &Pool, bytes: &[u8]) -> (Rope, Rope) {
    in_runs(pool, bytes, bytes.len() / 2)
}

fn refusals() -> impl Iterator<Item = Errno> {
    ERRORS.iter().copied().chain([Errno::EACCES, Errno::ENFILE, Errno::EINVAL])
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn pages_in_two_places_are_mapped() {
    let pool = Pool::options().small_limits().create().unwrap();
    let bytes = pattern(2 * MIB);
    let (rope, _between) = in_two_places(&pool, &bytes);
    let view = rope.finalize().unwrap();
    assert_eq!((view.copied_bytes(), view.mapped_bytes(), view.num_maps()), (0, 2 * MIB, 2));
    assert!(*view == bytes);
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn a_header_in_front_costs_no_more_than_two_pages() {
    let pool = Pool::options().small_limits().create().unwrap();
    let bytes = pattern(8 * MIB + 123);
    for header in [1, 40, 4095, 4096, 4097] {
        let mut rope = filled(&pool, &bytes);
        rope.push_front(vec![b'h'; header]);
        let view = rope.finalize().unwrap();
        assert!(view.copied_bytes() <= 2 * pool.page_size(), "{header}: {view:?}");
        assert!(view[..header].iter().all(|&byte| byte == b'h'));
        assert!(view[header..] == bytes);
    }
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn what_is_reserved_elsewhere_goes_on_where_in_a_page_the_rope_ended() {
    let pool = Pool::options().small_limits().create().unwrap();
    let bytes = pattern(2 * MIB + 100);
    let (first, rest) = bytes.split_at(MIB + 100);
    let mut rope = filled(&pool, first);
    let last = rope.chunks().last().unwrap();
    let end = (pool.offset_of(last).unwrap() + last.len()).next_multiple_of(pool.page_size());
    let pages = std::iter::repeat_with(|| filled(&pool, &[0xff]));
    let is_behind = |rope: &Rope| pool.offset_of(rope.chunks().next().unwrap()) == Some(end);
    let mut others: Vec<Rope> = Vec::new();
    for page in pages {
        others.push(page);
        if others.last().is_some_and(is_behind) {
            break;
        }
    }
    rope.reserve(rest.len()).unwrap();
    rope.extend_from_slice(rest);
    let view = rope.finalize().unwrap();
    assert!(*view == bytes);
    assert!(view.num_maps() == 2 && view.copied_bytes() <= pool.page_size(), "{view:?}");
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn a_refused_map_is_a_copy() {
    let pool = Pool::options().small_limits().create().unwrap();
    let bytes = pattern(2 * MIB);
    for refused in refusals() {
        for before in [vec![], vec![None]] {
            let (rope, _between) = in_two_places(&pool, &bytes);
            let moves = before.iter().copied().chain([Some(refused); 2]).collect();
            let refusals = [(Call::Move, moves), (Call::Map, [Some(refused)].into())];
            let view = mock::refusing_some(refusals, || rope.finalize().unwrap());
            assert_eq!((view.copied_bytes(), view.num_maps()), (2 * MIB, 0));
            assert!(*view == bytes);
        }
    }
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn what_the_kernel_does_not_move_is_mapped() {
    let pool = Pool::options().small_limits().create().unwrap();
    let bytes = pattern(2 * MIB);
    for refused in refusals() {
        for before in [vec![], vec![None]] {
            let (rope, _between) = in_two_places(&pool, &bytes);
            let answers = before.into_iter().chain([Some(refused)]);
            let view = mock::refusing(Call::Move, answers, || rope.finalize().unwrap());
            assert_eq!((view.copied_bytes(), view.num_maps()), (0, 2));
            assert!(*view == bytes);
        }
    }
}

/// Whether reading these bytes takes no page fault: proc_pid_pagemap(5), bit 63.
fn in_page_tables(bytes: &[u8]) -> bool {
    let page = page_size();
    let (first, end) = (bytes.as_ptr().addr() / page, (bytes.as_ptr().addr() + bytes.len()).div_ceil(page));
    let mut entries = vec![0; (end - first) * 8];
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    pagemap.read_exact_at(&mut entries, first as u64 * 8).unwrap();
    entries.chunks(8).all(|entry| entry[7] & 0x80 != 0)
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn what_is_moved_takes_no_fault_in_the_view_nor_where_it_goes_back() {
    if kernel_is_older_than(5, 13, "MREMAP_DONTUNMAP of shared pages") {
        return;
    }
    let pool = Pool::options().small_limits().create().unwrap();
    let bytes = pattern(6 * MIB);
    // An odd length: page tables are moved whole where they can be, else by the entry.
    for run in [3 * MIB, MIB + pool.page_size()] {
        let (rope, _between) = in_runs(&pool, &bytes, run);
        let kept = rope.clone();
        assert!(kept.chunks().all(in_page_tables));
        let view = rope.finalize().unwrap();
        assert!(view.num_maps() > 1 && in_page_tables(&view));
        assert!(!kept.chunks().any(in_page_tables));
        assert!(*view == bytes);
        drop(view);
        assert!(kept.chunks().all(in_page_tables));
    }
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn views_of_one_pool_come_and_go_while_others_read_and_write() {
    let pool = &Pool::options().small_limits().capacity(64 << 20).create().unwrap();
    let (to, from) = mpsc::sync_channel::<(u8, Rope, View)>(4);
    let from = &Mutex::new(from);
    thread::scope(|scope| {
        for number in 1..=3 {
            let to = to.clone();
            scope.spawn(move || {
                for _ in 0..30 {
                    let mut rope = Rope::in_pool(pool);
                    // Beside what the other threads write, so that none lies in one run.
                    for _ in 0..64 {
                        rope.append(filled(pool, &vec![number; 32 << 10]));
                    }
                    let view = rope.clone().finalize().unwrap();
                    assert_eq!(view.len(), rope.len());
                    to.send((number, rope, view)).unwrap();
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(move || {
                while let Ok((number, rope, view)) = { from.lock().unwrap().recv() } {
                    let second = rope.clone().finalize().unwrap();
                    assert!(view.iter().chain(rope.chunks().flatten()).all(|&byte| byte == number));
                    drop(view);
                    assert!(rope.chunks().flatten().chain(second.iter()).all(|&byte| byte == number));
                }
            });
        }
        drop(to);
    });
    pool.assert_invariants();
    assert_eq!(pool.stats().in_use, 0);
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn segments_and_views_of_the_same_pages_do_not_disturb_each_other() {
    let pool = Pool::options().small_limits().create().unwrap();
    let bytes = pattern(2 * MIB);
    let (rope, mut between) = in_two_places(&pool, &bytes);
    let views = [rope.clone().finalize().unwrap(), rope.slice(5000..).finalize().unwrap()];
    assert!(*views[0] == bytes && *views[1] == bytes[5000..] && rope == bytes[..]);
    between.extend_from_slice(&bytes);
    let [one, other] = views;
    drop(one);
    assert!(*other == bytes[5000..] && rope == bytes[..]);
    drop(other);
    let behind = between.len() - bytes.len();
    assert!(rope == bytes[..] && between.slice(behind..) == bytes[..]);
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn what_cannot_go_back_is_still_there() {
    let pool = Pool::options().small_limits().create().unwrap();
    let bytes = pattern(2 * MIB);
    // With ENOMEM the mock kernel unmaps what is there first.
    for refused in refusals() {
        let (rope, between) = in_two_places(&pool, &bytes);
        let kept = rope.clone();
        let view = rope.finalize().unwrap();
        mock::refusing(Call::MoveBack, [Some(refused), None], || drop(view));
        assert!(kept == bytes[..]);
        drop((kept, between));
        assert_eq!(pool.stats().in_use, 0);
        let (rope, _between) = in_two_places(&pool, &bytes);
        assert!(*rope.finalize().unwrap() == bytes);
    }
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn pages_that_lost_their_map_are_not_used_again() {
    if kernel_is_older_than(5, 13, "MREMAP_DONTUNMAP of shared pages") {
        return;
    }
    let bytes = pattern(2 * MIB);
    // Where another test maps something at the same moment, pages are not moved and cannot be lost.
    let lost = (0..10).any(|_| {
        let pool = Pool::options().small_limits().create().unwrap();
        let (rope, between) = in_two_places(&pool, &bytes);
        drop(between);
        let view = rope.finalize().unwrap();
        let held = pool.stats().in_use;
        let no_memory: VecDeque<_> = [Some(Errno::ENOMEM)].into();
        let refusals = [(Call::MoveBack, no_memory.clone()), (Call::MapBack, no_memory)];
        mock::refusing_some(refusals, || drop(view));
        let lost = pool.stats().in_use;
        let (rope, _between) = in_two_places(&pool, &bytes);
        assert!(*rope.finalize().unwrap() == bytes);
        lost == held && held >= 2 * MIB as u64
    });
    assert!(lost);
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn without_room_for_a_view_it_is_a_copy() {
    let pool = Pool::options().small_limits().create().unwrap();
    let bytes = pattern(2 * MIB);
    for &refused in ERRORS {
        for before in [vec![], vec![None]] {
            let (mut rope, _between) = in_two_places(&pool, &bytes);
            rope.push_front("a header from elsewhere");
            let answers = before.into_iter().chain([Some(refused)]);
            let view = mock::refusing(Call::Zeros, answers, || rope.finalize().unwrap());
            assert_eq!((view.copied_bytes(), view.num_maps()), (view.len(), 0));
            assert!(view[23..] == bytes);
        }
    }
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn where_another_thread_has_mapped_something_the_view_goes_elsewhere() {
    let pool = Pool::options().small_limits().create().unwrap();
    let bytes = pattern(2 * MIB);
    for before in [vec![], vec![None]] {
        let (mut rope, _between) = in_two_places(&pool, &bytes);
        rope.push_front("a header from elsewhere");
        let moves = before.into_iter().chain([Some(Errno::EEXIST)]).collect();
        let refusals = [(Call::Move, moves), (Call::Map, [Some(Errno::EEXIST)].into())];
        let view = mock::refusing_some(refusals, || rope.finalize().unwrap());
        assert_eq!(view.num_maps(), 2);
        assert!(view[23..] == bytes);
    }
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn threads_do_not_map_over_each_other() {
    thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                // On 32-bit targets, eight pools of the default capacity leave no address space for views.
                let pool = Pool::options().capacity(16 << 20).small_limits().create().unwrap();
                let bytes = vec![thread; MIB];
                for _ in 0..50 {
                    let (rope, _between) = in_two_places(&pool, &bytes);
                    let view = rope.finalize().unwrap();
                    assert_eq!((view.copied_bytes(), view.num_maps()), (0, 2));
                    assert!(*view == bytes);
                }
            });
        }
    });
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn mapped_pages_lie_in_2_mib_as_they_do_in_the_arena() {
    let pool = Pool::options().small_limits().create().unwrap();
    let (rope, _between) = in_two_places(&pool, &pattern(6 * MIB));
    let mut tail = rope.slice(3 * MIB..);
    tail.append(rope.slice(..3 * MIB));
    let address = tail.chunks().next().unwrap().as_ptr().addr();
    let view = tail.finalize().unwrap();
    assert_eq!((view.num_maps(), view.as_ptr().addr() % (2 * MIB)), (2, address % (2 * MIB)));
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn a_view_outlives_everything_else() {
    let pool = Pool::options().small_limits().create().unwrap();
    let bytes = pattern(2 * MIB);
    let (rope, between) = in_two_places(&pool, &bytes);
    let kept = rope.slice(10..20);
    let view = rope.finalize().unwrap();
    drop(between);
    let other = filled(&pool, &vec![0xff; 4 * MIB]);
    assert!(pool.trim().is_ok());
    drop(pool);
    assert!(*view == bytes);
    assert_eq!(kept, bytes[10..20]);
    let shared = Bytes::from(view.clone());
    drop(view);
    drop(other);
    assert!(shared == bytes);
}

#[test]
fn one_segment_is_the_view() {
    let bytes = Bytes::from(pattern(100));
    let view = Rope::from(bytes.clone()).finalize().unwrap();
    assert_eq!(view.as_ptr(), bytes.as_ptr());
    assert_eq!(view.copied_bytes(), 0);
    assert!(Rope::with_small_limits().finalize().unwrap().is_empty());
}

#[test]
fn segments_from_elsewhere_are_copied() {
    let rope: Rope = ["one", " and ", "another"].into_iter().collect();
    let view = rope.finalize().unwrap();
    assert_eq!(&*view, b"one and another");
    assert_eq!(view.copied_bytes(), view.len());
}
