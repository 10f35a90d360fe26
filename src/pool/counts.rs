//! How many leases each page belongs to. The part of the pool that takes no lock; `loom/` checks it.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering, fence};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering, fence};

use super::pages::Run;

/// A count for each page. A page is free exactly if its count is 0, but for the moment in which it changes
/// hands.
pub(super) struct Counts(Box<[AtomicU32]>);

impl Counts {
    /// Counts for as many pages, whose memory is not touched before it is used.
    #[cfg(not(loom))]
    #[allow(unsafe_code)] // there is no safe way to a large zeroed slice of atomics
    pub(super) fn new(pages: u32) -> Counts {
        let zeroed = Box::into_raw(vec![0u32; pages as usize].into_boxed_slice());
        // SAFETY: the pointer comes from a box, and AtomicU32 has the size, alignment and bit validity of u32.
        Counts(unsafe { Box::from_raw(zeroed as *mut [AtomicU32]) })
    }

    #[cfg(loom)]
    pub(super) fn new(pages: u32) -> Counts {
        Counts((0..pages).map(|_| AtomicU32::new(0)).collect())
    }

    /// Counts the first lease on each page. The caller has just taken them.
    pub(super) fn take(&self, run: Run) {
        for count in self.of(run) {
            // Only the taker knows of the page now, and the lock has ordered it after the last owner.
            count.store(1, Ordering::Relaxed);
        }
    }

    /// Counts one more lease on each page. The caller holds one of them already.
    pub(super) fn add(&self, run: Run) {
        for count in self.of(run) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts one lease less on each page and hands on those that have none left, in runs.
    pub(super) fn release(&self, run: Run, mut give: impl FnMut(Run)) {
        let mut give = |start, end| {
            if start < end {
                give(Run { start, len: end - start });
            }
        };
        let mut start = run.start;
        for (page, count) in run.range().zip(self.of(run)) {
            if !release_one(count) {
                give(start, page);
                start = page + 1;
            }
        }
        give(start, run.end());
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn is_leased(&self, page: u32) -> bool {
        self.0[page as usize].load(Ordering::Relaxed) > 0
    }

    fn of(&self, run: Run) -> &[AtomicU32] {
        &self.0[run.start as usize..run.end() as usize]
    }
}

/// Returns whether this was the last lease.
fn release_one(count: &AtomicU32) -> bool {
    // As in `Arc`: the last owner has to see what the others did before the page changes hands. If this
    // is the only lease, nobody else can add to the count, and no read-modify-write is needed.
    if count.load(Ordering::Acquire) == 1 {
        count.store(0, Ordering::Relaxed);
        return true;
    }
    let last = count.fetch_sub(1, Ordering::Release) == 1;
    if last {
        fence(Ordering::Acquire);
    }
    last
}
