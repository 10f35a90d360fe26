//! How often the heap is asked: not at all per read or per send, once for a small message.
#![allow(unsafe_code)] // an allocator that counts

#[path = "support/seccomp.rs"]
mod seccomp;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;

use bytes::BufMut;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ropewalk::{Pool, Rope};

struct Counting;

thread_local!(static COUNT: Cell<usize> = const { Cell::new(0) });
thread_local!(static LIVE: Cell<usize> = const { Cell::new(0) });

/// Counts a request for a block, and how many bytes came and went.
fn count(requests: usize, more: usize, less: usize) {
    // A thread that ends, and has no counter any more, counts nothing.
    let _ = COUNT.try_with(|count| count.set(count.get() + requests));
    let _ = LIVE.try_with(|live| live.set(live.get().wrapping_add(more).wrapping_sub(less)));
}

// SAFETY: all is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size(), 0);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(0, 0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(1, size, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Blocks that this thread asks for in `work`.
fn allocations(work: impl FnOnce()) -> usize {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

#[test]
fn one_for_a_small_message() {
    let pool = Pool::new().unwrap();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    for len in [1, 64, 1000, 4096] {
        // The second one, when everything has been touched.
        let counts = [(); 2].map(|()| {
            peer.write_all(&vec![7; len]).unwrap();
            allocations(|| {
                let mut rope = Rope::in_pool(&pool);
                while rope.len() < len {
                    rope.readv_up_to(&socket, len - rope.len()).unwrap();
                }
                assert_eq!(rope.finalize().unwrap().len(), len);
            })
        });
        assert!(counts[1] <= 1, "{len} bytes: {counts:?}");
    }
}

#[test]
fn one_for_a_small_payload_and_its_end() {
    let pool = Pool::new().unwrap();
    let counts = [(); 3].map(|()| {
        let (mut peer, socket) = UnixStream::pair().unwrap();
        peer.write_all(&[7; 64]).unwrap();
        drop(peer);
        allocations(|| {
            let mut rope = Rope::in_pool(&pool);
            while rope.readv_from(&socket).unwrap() > 0 {}
            assert_eq!(rope.finalize().unwrap().len(), 64);
        })
    });
    assert!(counts[2] <= 1, "{counts:?}");
}

#[test]
fn none_per_read() {
    let pool = Pool::new().unwrap();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let mut rope = Rope::in_pool(&pool);
    let mut read = |bytes: &[u8]| {
        peer.write_all(bytes).unwrap();
        allocations(|| assert_eq!(rope.readv_from(&socket).unwrap(), bytes.len()))
    };
    assert_eq!(read(&[7; 1000]), 1, "the tail");
    // The owner of the first segment of 2 MiB is due later still.
    assert_eq!((0..1000).map(|_| read(&[7; 1000])).sum::<usize>(), 0);
    assert!(allocations(|| drop(rope.slice(..))) > 0, "the allocator counts");
}

/// writev(2) to a file stops where `RLIMIT_FSIZE` does; the file is taken back to one byte before it.
#[test]
fn none_to_send_byte_by_byte() {
    const LIMIT: u64 = 1 << 20;
    let path = std::env::temp_dir().join(format!("ropewalk-allocations-{}", std::process::id()));
    let mut file = File::create(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, LIMIT, hard).unwrap();
    let mut rope: Rope = (0..3000).map(|_| vec![7; 3]).collect();
    let mut send = |rope: &mut Rope| {
        file.seek(SeekFrom::Start(LIMIT - 1)).unwrap();
        assert_eq!(rope.writev_to(&file).unwrap(), 1, "the file takes one byte");
    };
    send(&mut rope);
    let count = allocations(|| (1..9000).for_each(|_| send(&mut rope)));
    assert!(rope.is_empty());
    assert_eq!(count, 0);
}

/// What is left of a rope of many segments holds no memory of those that are gone, from whichever end they went.
#[test]
fn a_table_of_segments_shrinks() {
    const SEGMENTS: usize = 300_000;
    let ways: [fn(&mut Rope); 5] = [
        |rope| rope.advance(SEGMENTS - 10),
        |rope| rope.truncate(10),
        |rope| drop(rope.split_to(SEGMENTS - 10)),
        |rope| (0..SEGMENTS - 10).for_each(|_| rope.advance(1)),
        |rope| (10..SEGMENTS).rev().for_each(|len| rope.truncate(len)),
    ];
    for (at, shorten) in ways.into_iter().enumerate() {
        let before = LIVE.get();
        let mut rope: Rope = (0..SEGMENTS).map(|_| "s").collect();
        let full = LIVE.get().wrapping_sub(before);
        assert!(full > 8 * SEGMENTS, "the allocator counts: {full}");
        shorten(&mut rope);
        let left = LIVE.get().wrapping_sub(before);
        assert_eq!(rope.len(), 10);
        assert!(left <= full / 8, "{at}: {full} bytes, then {left}");
    }
}

/// In each interface: the tail grows, and each block of it is twice as long as the one before.
#[test]
fn few_for_single_bytes() {
    let ways: [fn(&mut Rope); 6] = [
        |rope| rope.extend_from_slice(b"x"),
        |rope| rope.put_u8(b'x'),
        |rope| rope.put_bytes(b'x', 1),
        |rope| rope.write_all(b"x").unwrap(),
        |rope| write!(rope, "x").unwrap(),
        |rope| rope.extend([&b"x"[..]]),
    ];
    let pool = Pool::options().capacity(16 << 20).create().unwrap();
    for (at, put) in ways.into_iter().enumerate() {
        for mut rope in [Rope::in_pool(&pool), Rope::new()] {
            let count = allocations(|| (0..100_000).for_each(|_| put(&mut rope)));
            assert_eq!(rope.len(), 100_000);
            assert!(count < 60, "way {at}: {count} blocks");
        }
    }
}

#[test]
#[cfg(not(ropewalk_portable))] // which does not splice
fn none_where_a_splice_fails_half_way() {
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let part: Vec<u8> = (0..50_000u32).map(|at| (at % 251) as u8).collect();
    let mut rope = Rope::for_handover().unwrap();
    rope.write_all(&part.repeat(2)).unwrap();
    peer.write_all(&part).unwrap();
    assert_eq!(rope.splice_from(&socket).unwrap(), part.len());
    // Its length tells the call that takes the bytes out of the pipe.
    seccomp::forbid(libc::SYS_splice, Some((4, part.len() as u32)), libc::EPERM);
    peer.write_all(&part).unwrap();
    assert_eq!(allocations(|| assert_eq!(rope.splice_from(&socket).unwrap(), part.len())), 0);
    assert!(rope == part.repeat(4));
}
