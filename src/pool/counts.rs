//! How many leases each page belongs to. The part of the pool that takes no lock; `loom/` checks it.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};

use super::pages::Run;

/// A count for each page: the leases on it beside the first one. A page that is free, or has a single owner
/// as most have, counts 0; taking it and giving it back writes nothing.
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

    /// Counts one more lease on each page. The caller holds one of them already.
    pub(super) fn add(&self, run: Run) {
        for count in self.of(run) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts one lease less on each page and hands on those that have none left, in runs.
    #[inline]
    pub(super) fn release(&self, run: Run, mut give: impl FnMut(Run)) {
        // As in `Arc`: the last owner has to see what the others did before the page changes hands. If there
        // is no other lease, nobody can add one, and no read-modify-write is needed.
        if run.len > 0 && self.of(run).iter().all(|count| count.load(Ordering::Acquire) == 0) {
            return give(run);
        }
        self.release_shared(run, give);
    }

    #[inline(never)]
    fn release_shared(&self, run: Run, mut give: impl FnMut(Run)) {
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
    pub(super) fn is_shared(&self, page: u32) -> bool {
        self.0[page as usize].load(Ordering::Relaxed) > 0
    }

    fn of(&self, run: Run) -> &[AtomicU32] {
        &self.0[run.start as usize..run.end() as usize]
    }
}

/// Returns whether this was the last lease.
fn release_one(count: &AtomicU32) -> bool {
    if count.load(Ordering::Acquire) == 0 {
        return true;
    }
    // Not a fence behind a release, which ThreadSanitizer does not know.
    let last = count.fetch_sub(1, Ordering::AcqRel) == 0;
    if last {
        // Somebody else let go since the look above, so the count went below 0. Nobody else looks at it.
        count.store(0, Ordering::Relaxed);
    }
    last
}
