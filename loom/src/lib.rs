//! The counts on pages and on the pool, in every order in which threads can meet: `bash .ci/sanitize loom`.
#![cfg(all(test, loom))]

#[path = "../../src/pool/counts.rs"]
#[allow(dead_code)] // not all of it is for these tests
mod counts;
#[path = "../../src/pool/handle.rs"]
mod handle;
#[path = "../../src/pool/pages.rs"]
#[allow(dead_code)] // only `Run` is
mod pages;
#[path = "../../src/pool/stash.rs"]
#[allow(dead_code)] // not all of it is for these tests
mod stash;

use counts::Counts;
use handle::Handle;
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use pages::{Run, Taken};
use stash::Stash;

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

/// What a handle is for; loom watches that nobody reads it while or after it is dropped.
struct Value(UnsafeCell<u32>, Arc<AtomicUsize>);

impl Value {
    #[allow(unsafe_code)] // loom watches that nobody writes meanwhile
    fn read(&self) {
        // SAFETY: this thread has a handle.
        self.0.with(|value| assert_eq!(unsafe { *value }, 7));
    }
}

impl Drop for Value {
    #[allow(unsafe_code)] // loom watches that nobody reads meanwhile
    fn drop(&mut self) {
        // SAFETY: there is no handle left.
        self.0.with_mut(|value| unsafe { *value = 0 });
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

/// Nobody but loom's threads touches it.
#[allow(unsafe_code)]
// SAFETY: it is only read, until it is dropped; loom watches.
unsafe impl Sync for Value {}

/// Reads through a handle, through a further one in this stripe, and drops them in this order.
fn share_and_drop(handle: Handle<Value>, stripe: u32) {
    let further = handle.share(stripe);
    handle.read();
    drop(handle);
    further.read();
}

/// Has two threads share and drop a handle each, while the first keeper is dropped.
fn the_value_goes_once(handles: impl Fn(&Handle<Value>) -> [Handle<Value>; 2] + Sync + Send + 'static) {
    loom::model(move || {
        let dropped = Arc::new(AtomicUsize::new(0));
        let keeper = Handle::new(Value(UnsafeCell::new(7), Arc::clone(&dropped)));
        let [one, other] = handles(&keeper);
        let one = thread::spawn(move || share_and_drop(one, 1));
        let other = thread::spawn(move || share_and_drop(other, 0));
        drop(keeper);
        one.join().expect("it does not panic");
        other.join().expect("it does not panic");
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn the_value_goes_with_the_last_handle_when_no_keeper_is_left() {
    the_value_goes_once(|keeper| [keeper.share(0), keeper.share(0)]);
}

#[test]
fn the_value_goes_with_the_last_keeper_or_a_handle_behind_it() {
    the_value_goes_once(|keeper| [keeper.clone(), keeper.share(0)]);
    the_value_goes_once(|keeper| [keeper.clone(), keeper.clone()]);
}

/// Two pages that are at hand in lane 0, and what is in them.
struct AtHand {
    stash: Stash,
    bytes: [UnsafeCell<u32>; 2],
}

impl AtHand {
    fn both() -> Arc<AtHand> {
        let at_hand = AtHand { stash: Stash::new(2, 1), bytes: [UnsafeCell::new(0), UnsafeCell::new(0)] };
        assert!(at_hand.stash.give(0, Taken::mapped(BOTH)));
        Arc::new(at_hand)
    }

    /// Writes to pages as who has taken them may; how many that were.
    #[allow(unsafe_code)] // loom watches that nobody looks meanwhile
    fn fill(&self, run: Run) -> u32 {
        for page in run.range() {
            // SAFETY: the page is nobody's but this thread's.
            self.bytes[page as usize].with_mut(|byte| unsafe { *byte += 1 });
        }
        run.len
    }

    /// Takes a page, fills it, and gives it back; returns how many it has then.
    fn take_and_give(&self) -> u32 {
        let Some(pages) = self.stash.take(0, 1) else { return 0 };
        self.fill(pages.run);
        if self.stash.give(0, pages) { 0 } else { pages.run.len }
    }

    fn collect(&self) -> u32 {
        self.stash.collect(0).map_or(0, |kept| self.fill(kept.pages.run))
    }
}

#[test]
fn what_is_at_hand_is_taken_once_and_after_its_last_owner() {
    loom::model(|| {
        let pages = AtHand::both();
        let (other, third) = (Arc::clone(&pages), Arc::clone(&pages));
        let other = thread::spawn(move || other.take_and_give());
        let third = thread::spawn(move || third.collect());
        let had = pages.take_and_give();
        let had = had + other.join().expect("it does not panic") + third.join().expect("it does not panic");
        assert_eq!(had + pages.collect(), 2);
    });
}

#[test]
fn what_is_given_to_a_closed_lane_is_refused() {
    loom::model(|| {
        let pages = AtHand::both();
        let other = Arc::clone(&pages);
        let other = thread::spawn(move || other.take_and_give() + other.take_and_give());
        let closed = pages.stash.close(0).map_or(0, |kept| pages.fill(kept.pages.run));
        assert!(pages.collect() == 0 && pages.stash.kept(0).is_none());
        pages.stash.open();
        assert_eq!(closed + other.join().expect("it does not panic") + pages.collect(), 2);
    });
}
