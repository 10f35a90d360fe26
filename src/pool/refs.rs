//! How many references each page has. Lock-free; `loom/` checks it.

use std::ops::Deref;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};

use super::runs::PageRun;

/// References beside the first one, for each page. A page that is free or has one owner, as most have, counts 0: so
/// allocating and freeing it writes nothing here.
pub(super) struct Refs<T>(T);

/// A count that large has leaked references; `Arc` aborts in the same place.
const MAX: u32 = u32::MAX / 2;

impl<T: Deref<Target = [AtomicU32]>> Refs<T> {
    /// Counts in a zeroed table, one entry a page.
    pub(super) fn new(table: T) -> Refs<T> {
        Refs(table)
    }

    /// Adds a reference to each page. The caller has one already. O(pages).
    ///
    /// Aborts the process before a count can wrap.
    pub(super) fn add(&self, run: PageRun) {
        for count in self.of(run) {
            if count.fetch_add(1, Ordering::Relaxed) > MAX {
                std::process::abort();
            }
        }
    }

    /// Drops a reference to each page; calls `free` with the runs of those that have none left. O(pages).
    #[inline]
    pub(super) fn release(&self, run: PageRun, mut free: impl FnMut(PageRun)) {
        // Acquire, as in `Arc`: the last owner must see what the others did before the page changes hands. While this
        // reference is the only one no thread can add another, so no read-modify-write is needed.
        if run.len > 0 && self.of(run).iter().all(|count| count.load(Ordering::Acquire) == 0) {
            return free(run);
        }
        self.release_shared(run, free);
    }

    #[inline(never)]
    fn release_shared(&self, run: PageRun, mut free: impl FnMut(PageRun)) {
        let mut free = |start, end| {
            if start < end {
                free(PageRun::new(start, end - start));
            }
        };
        let mut start = run.start;
        for (page, count) in run.range().zip(self.of(run)) {
            if !release_one(count) {
                free(start, page);
                start = page + 1;
            }
        }
        free(start, run.end());
    }

    /// Returns whether the page has more than one reference.
    #[cfg(any(test, fuzzing))]
    pub(super) fn is_shared(&self, page: u32) -> bool {
        self.0[page as usize].load(Ordering::Relaxed) > 0
    }

    fn of(&self, run: PageRun) -> &[AtomicU32] {
        &self.0[run.start as usize..run.end() as usize]
    }
}

/// Returns whether this was the last reference.
fn release_one(count: &AtomicU32) -> bool {
    if count.load(Ordering::Acquire) == 0 {
        return true;
    }
    // `AcqRel` rather than `Release` and a fence, which ThreadSanitizer does not support.
    let last = count.fetch_sub(1, Ordering::AcqRel) == 0;
    if last {
        // Another owner let go since the load, so the count wrapped below 0. This owner is alone now.
        count.store(0, Ordering::Relaxed);
    }
    last
}
