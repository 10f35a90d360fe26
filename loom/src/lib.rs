//! The counts on pages, in every order in which threads can meet: `bash .ci/sanitize loom`.
#![cfg(all(test, loom))]

#[path = "../../src/pool/counts.rs"]
#[allow(dead_code)] // not all of it is for these tests
mod counts;
#[path = "../../src/pool/pages.rs"]
#[allow(dead_code)] // only `Run` is
mod pages;

use counts::Counts;
use loom::cell::UnsafeCell;
use loom::sync::{Arc, Mutex};
use loom::thread;
use pages::Run;

const FIRST: Run = Run { start: 0, len: 1 };
const BOTH: Run = Run { start: 0, len: 2 };

/// Two pages, what is in them, and which of them are free.
struct Pages {
    counts: Counts,
    bytes: [UnsafeCell<u32>; 2],
    free: Mutex<[bool; 2]>,
}

impl Pages {
    fn taken() -> Arc<Pages> {
        let bytes = [UnsafeCell::new(0), UnsafeCell::new(1)];
        let pages = Pages { counts: Counts::new(2), bytes, free: Mutex::new([false; 2]) };
        Arc::new(pages)
    }

    /// Reads pages as a lease may, and gives the lease up.
    #[allow(unsafe_code)] // loom watches that nobody writes meanwhile
    fn read_and_release(&self, run: Run) {
        for page in run.range() {
            // SAFETY: this thread has a lease.
            self.bytes[page as usize].with(|byte| assert_eq!(unsafe { *byte }, page));
        }
        self.counts.release(run, |run| {
            let mut free = self.free.lock().expect("nobody panics");
            for page in run.range() {
                assert!(!std::mem::replace(&mut free[page as usize], true), "given back twice");
            }
        });
    }

    /// Takes what is free and writes to it, as the next owner may.
    #[allow(unsafe_code)] // loom watches that nobody reads meanwhile
    fn recycle(&self) -> usize {
        let free = std::mem::take(&mut *self.free.lock().expect("nobody panics"));
        for (page, bytes) in self.bytes.iter().enumerate().filter(|(page, _)| free[*page]) {
            // SAFETY: the page is nobody's but this thread's.
            bytes.with_mut(|byte| unsafe { *byte = 100 + page as u32 });
        }
        free.into_iter().filter(|free| *free).count()
    }
}

#[test]
fn a_page_changes_hands_once_and_after_its_last_reader() {
    loom::model(|| {
        let pages = Pages::taken();
        pages.counts.add(FIRST);
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
fn a_lease_may_be_shared_while_others_go() {
    loom::model(|| {
        let pages = Pages::taken();
        pages.counts.add(FIRST);
        let other = Arc::clone(&pages);
        let other = thread::spawn(move || {
            other.counts.add(FIRST);
            other.read_and_release(FIRST);
            other.read_and_release(FIRST);
            other.recycle()
        });
        pages.read_and_release(BOTH);
        let recycled = pages.recycle() + other.join().expect("it does not panic");
        assert_eq!(recycled + pages.recycle(), 2);
    });
}
