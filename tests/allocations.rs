//! How often the heap is asked: not at all per read or per send, once for a small message.
#![allow(unsafe_code)] // an allocator that counts

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ropewalk::{Pool, Rope};

struct Counting;

thread_local!(static COUNT: Cell<usize> = const { Cell::new(0) });

fn count() {
    // A thread that ends, and has no counter any more, counts nothing.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: all is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
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
