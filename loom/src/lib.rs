//! Reference counts and page caches, in every order in which threads can meet: `bash .ci/sanitize loom`.
#![cfg(all(test, loom))]

#[path = "../../src/pool/cache.rs"]
#[allow(dead_code)] // not all of it is for these tests
mod cache;
#[path = "../../src/pool/refs.rs"]
#[allow(dead_code)] // as above
mod refs;
#[path = "../../src/pool/runs.rs"]
#[allow(dead_code)] // only `PageRun` is
mod runs;

/// What the allocator's tables are made of; loom's tests allocate nothing.
mod sys {
    pub(crate) mod memory {
        pub(crate) struct Table<T>(Vec<T>);

        impl<T> Table<T> {
            pub(crate) fn new(_: usize) -> std::io::Result<Table<T>> {
                Ok(Table(Vec::new()))
            }
        }

        impl<T> std::ops::Deref for Table<T> {
            type Target = [T];

            fn deref(&self) -> &[T] {
                &self.0
            }
        }

        impl<T> std::ops::DerefMut for Table<T> {
            fn deref_mut(&mut self) -> &mut [T] {
                &mut self.0
            }
        }
    }
}

use cache::PageCache;
use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU32;
use loom::sync::{Arc, Mutex};
use loom::thread;
use refs::Refs;
use runs::PageRun;

const FIRST: PageRun = PageRun { start: 0, len: 1 };
const BOTH: PageRun = PageRun { start: 0, len: 2 };

/// Two pages, what is in them, and which of them are free.
struct Pages {
    refs: Refs<Box<[AtomicU32]>>,
    bytes: [UnsafeCell<u32>; 2],
    free: Mutex<[bool; 2]>,
}

impl Pages {
    fn allocated() -> Arc<Pages> {
        let refs = Refs::new((0..2).map(|_| AtomicU32::new(0)).collect());
        let bytes = [UnsafeCell::new(0), UnsafeCell::new(1)];
        Arc::new(Pages { refs, bytes, free: Mutex::new([false; 2]) })
    }

    /// Reads pages as an owner may, and drops its reference.
    #[allow(unsafe_code)] // loom watches that no thread writes meanwhile
    fn read_and_release(&self, run: PageRun) {
        for page in run.range() {
            // SAFETY: this thread has a reference.
            self.bytes[page as usize].with(|byte| assert_eq!(unsafe { *byte }, page));
        }
        self.refs.release(run, |run| {
            let mut free = self.free.lock().expect("no thread panics");
            for page in run.range() {
                assert!(!std::mem::replace(&mut free[page as usize], true), "freed twice");
            }
        });
    }

    /// Allocates what is free and writes to it, as the next owner may.
    #[allow(unsafe_code)] // loom watches that no thread reads meanwhile
    fn recycle(&self) -> usize {
        let free = std::mem::take(&mut *self.free.lock().expect("no thread panics"));
        for (page, bytes) in self.bytes.iter().enumerate().filter(|(page, _)| free[*page]) {
            // SAFETY: the page is this thread's alone.
            bytes.with_mut(|byte| unsafe { *byte = 100 + page as u32 });
        }
        free.into_iter().filter(|free| *free).count()
    }
}

#[test]
fn a_page_is_freed_once_and_after_its_last_reader() {
    loom::model(|| {
        let pages = Pages::allocated();
        pages.refs.add(FIRST);
        let other = Arc::clone(&pages);
        let other = thread::spawn(move || other.read_and_release(FIRST));
        let third = Arc::clone(&pages);
        let third = thread::spawn(move || third.recycle());
        pages.read_and_release(BOTH);
        other.join().expect("it does not panic");
        let recycled = third.join().expect("it does not panic");
        assert_eq!(recycled + pages.recycle(), 2);
    });
}

#[test]
fn a_reference_may_be_shared_while_others_are_dropped() {
    loom::model(|| {
        let pages = Pages::allocated();
        pages.refs.add(FIRST);
        let other = Arc::clone(&pages);
        let other = thread::spawn(move || {
            other.refs.add(FIRST);
            other.read_and_release(FIRST);
            other.read_and_release(FIRST);
            other.recycle()
        });
        pages.read_and_release(BOTH);
        let recycled = pages.recycle() + other.join().expect("it does not panic");
        assert_eq!(recycled + pages.recycle(), 2);
    });
}

/// Two pages in a cache, and what is in them.
struct Cached {
    cache: PageCache,
    bytes: [UnsafeCell<u32>; 2],
}

impl Cached {
    fn both() -> Arc<Cached> {
        let cached =
            Cached { cache: PageCache::new(2, 1, 2), bytes: [UnsafeCell::new(0), UnsafeCell::new(0)] };
        assert!(cached.cache.free(BOTH));
        Arc::new(cached)
    }

    /// Writes to pages as their owner may; returns how many.
    #[allow(unsafe_code)] // loom watches that no thread reads meanwhile
    fn fill(&self, run: PageRun) -> u32 {
        for page in run.range() {
            // SAFETY: the page is this thread's alone.
            self.bytes[page as usize].with_mut(|byte| unsafe { *byte += 1 });
        }
        run.len
    }

    /// Allocates a page, fills it, and frees it; returns how many it has then.
    fn allocate_and_free(&self) -> u32 {
        let Some(run) = self.cache.allocate(1) else { return 0 };
        self.fill(run);
        if self.cache.free(run) { 0 } else { run.len }
    }

    fn flush(&self) -> u32 {
        self.fill(self.cache.flush().run)
    }
}

#[test]
fn a_cached_page_is_allocated_once_and_after_its_last_owner() {
    loom::model(|| {
        let pages = Cached::both();
        let (other, third) = (Arc::clone(&pages), Arc::clone(&pages));
        let other = thread::spawn(move || other.allocate_and_free());
        let third = thread::spawn(move || third.flush());
        let had = pages.allocate_and_free();
        let had = had + other.join().expect("it does not panic") + third.join().expect("it does not panic");
        assert_eq!(had + pages.flush(), 2);
    });
}

#[test]
fn a_closed_cache_accepts_nothing() {
    loom::model(|| {
        let pages = Cached::both();
        let other = Arc::clone(&pages);
        let other = thread::spawn(move || other.allocate_and_free() + other.allocate_and_free());
        let closed = pages.fill(pages.cache.close().run);
        assert!(pages.flush() == 0 && pages.cache.peek().run.len == 0);
        pages.cache.open();
        assert_eq!(closed + other.join().expect("it does not panic") + pages.flush(), 2);
    });
}
