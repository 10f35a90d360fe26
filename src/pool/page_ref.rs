//! A counted reference to a run of pages.

use std::fmt;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::core::{Shard, Want};
use super::runs::PageRun;

/// A counted reference to a run of pages. Each page is freed when its last reference is dropped.
pub(crate) struct PageRef {
    shard: Arc<Shard>,
    run: PageRun,
    /// Pages, from the first on, that are known to be resident.
    resident: u32,
    /// Pages, the first ones, that were reserved for the rope when it allocated them: of its tail only.
    drawn: u32,
}

impl PageRef {
    /// Allocates pages: `reserved` ones first, which it lowers.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` when the pool is at capacity.
    #[inline]
    pub(super) fn allocate(shard: &Arc<Shard>, want: Want, reserved: &mut u32) -> io::Result<PageRef> {
        let (core, before) = (&shard.core, *reserved);
        let cached = core.cache(shard.index, *reserved).and_then(|cache| match want {
            Want::Packed(pages) | Want::Exactly(pages) => cache.allocate_exact(pages),
            want => cache.allocate(want.pages()),
        });
        let (run, resident) = match cached {
            Some(run) => (run, run.len),
            None => core.allocate(shard.index, want, reserved)?,
        };
        Ok(PageRef { shard: Arc::clone(shard), run, resident, drawn: before - *reserved })
    }

    /// Allocates pages that follow; returns how many.
    pub(super) fn grow(&mut self, want: Want, reserved: &mut u32) -> u32 {
        let (core, end, before) = (&self.shard.core, self.run.end(), *reserved);
        let cached = core.cache(self.shard.index, *reserved).and_then(|cache| cache.grow(end, want.pages()));
        let (grown, resident) = match cached {
            Some(run) => (run.len, run.len),
            None => core.grow(self.shard.index, end, want, reserved),
        };
        if self.resident == self.run.len {
            self.resident += resident;
        }
        self.run.len += grown;
        self.drawn += before - *reserved;
        grown
    }

    /// Frees all but the first `len` pages, of which this must be the only reference; returns how many of those freed
    /// are reserved again, because they were before.
    pub(crate) fn truncate(&mut self, len: u32) -> u32 {
        let (rest, resident) = self.part(len..self.run.len);
        // Reserved pages were allocated first.
        let again = self.drawn.saturating_sub(len);
        self.drawn -= again;
        self.resident = self.resident.min(len);
        self.run.len = len;
        if rest.len > 0 {
            self.shard.core.free(self.shard.index, rest, resident, again);
        }
        again
    }

    /// Cuts at `offset` bytes into the run: returns the pages before, keeps those behind. The page through which the
    /// cut goes belongs to both.
    pub(crate) fn split_to(&mut self, offset: usize) -> PageRef {
        let page = self.page_size();
        let (front_end, rest_start) = (to_page(offset.div_ceil(page)), to_page(offset / page));
        if rest_start < front_end {
            self.shard.core.refs.add(PageRun::new(self.run.start + rest_start, 1));
        }
        let (front, rest) = (self.part(0..front_end), self.part(rest_start..self.run.len));
        self.complete(rest_start as usize * page);
        self.drawn = self.drawn.saturating_sub(rest_start);
        (self.run, self.resident) = rest;
        PageRef { shard: Arc::clone(&self.shard), run: front.0, resident: front.1, drawn: 0 }
    }

    /// Notes that no byte of the first `len` ever changes again, nor any behind them in the same page.
    #[inline]
    pub(crate) fn complete(&self, len: usize) {
        let core = &self.shard.core;
        if core.spill().is_some() && len > 0 {
            core.write_out(PageRun::new(self.run.start, core.pages(len)), len);
        }
    }

    /// A further reference to the pages that hold these bytes of the run. O(pages).
    pub(crate) fn share(&self, bytes: Range<usize>) -> PageRef {
        let page = self.page_size();
        let (run, resident) = self.part(to_page(bytes.start / page)..to_page(bytes.end.div_ceil(page)));
        self.shard.core.refs.add(run);
        PageRef { shard: Arc::clone(&self.shard), run, resident, drawn: 0 }
    }

    /// A further reference to the pages from byte `bytes.start` of the arena to `bytes.end`, all of which the caller has a
    /// reference to and has filled. O(pages).
    pub(super) fn pin(shard: &Arc<Shard>, bytes: Range<usize>) -> PageRef {
        let page = shard.core.arena.page_size();
        let (start, end) = (to_page(bytes.start / page), to_page(bytes.end.div_ceil(page)));
        let run = PageRun::new(start, end - start);
        shard.core.refs.add(run);
        PageRef { shard: Arc::clone(shard), run, resident: run.len, drawn: 0 }
    }

    /// Counts the pages of a segment of `len` bytes, if that is less than a tenth of them.
    #[inline]
    pub(crate) fn count_pinned(&self, len: usize) {
        if self.pins(len) {
            self.add_pinned(self.bytes() as u64);
        }
    }

    /// Takes [`count_pinned`](PageRef::count_pinned) back.
    #[inline]
    pub(crate) fn uncount_pinned(&self, len: usize) {
        if self.pins(len) {
            self.add_pinned((self.bytes() as u64).wrapping_neg());
        }
    }

    #[inline]
    fn pins(&self, len: usize) -> bool {
        len < self.bytes() / 10
    }

    #[cold]
    fn add_pinned(&self, bytes: u64) {
        self.shard.core.counters.pinned.fetch_add(bytes, Ordering::Relaxed);
    }

    fn bytes(&self) -> usize {
        self.run.len as usize * self.page_size()
    }

    /// Gives pages `first..end` of the run memory, and page table entries if they are to be touched.
    pub(crate) fn commit(&mut self, first: u32, end: u32, touched: bool) -> io::Result<()> {
        let resident = self.resident.max(first);
        if resident < end {
            let (core, run) = (&self.shard.core, PageRun::new(self.run.start + resident, end - resident));
            core.commit(run, touched)?;
            if self.resident >= first {
                self.resident = end;
            }
        }
        Ok(())
    }

    /// Returns whether these are pages of the shard's pool.
    pub(super) fn is_of(&self, shard: &Shard) -> bool {
        Arc::ptr_eq(&self.shard.core, &shard.core)
    }

    /// Returns whether a child of the process that made the pool runs: the pages are not mapped there.
    #[inline]
    pub(crate) fn is_inherited(&self) -> bool {
        self.shard.core.arena.is_inherited()
    }

    #[inline]
    pub(crate) fn page_size(&self) -> usize {
        self.shard.core.arena.page_size()
    }

    /// The address of the first byte, with provenance for the arena.
    #[inline]
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.shard.core.arena.page(self.run.start)
    }

    /// Pages.
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.run.len
    }

    /// Pages, from the first on, that are known to be resident.
    #[inline]
    pub(crate) fn resident(&self) -> u32 {
        self.resident
    }

    fn part(&self, pages: Range<u32>) -> (PageRun, u32) {
        let run = PageRun::new(self.run.start + pages.start, pages.end - pages.start);
        (run, self.resident.saturating_sub(pages.start).min(run.len))
    }
}

impl Drop for PageRef {
    #[inline]
    fn drop(&mut self) {
        let (core, first) = (&self.shard.core, self.run.start);
        core.refs.release(self.run, |run| {
            let resident = self.resident.saturating_sub(run.start - first).min(run.len);
            core.free(self.shard.index, run, resident, 0);
        });
    }
}

impl fmt::Debug for PageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageRef").field("run", &self.run).finish_non_exhaustive()
    }
}

fn to_page(page: usize) -> u32 {
    u32::try_from(page).expect("an arena has less than 2^32 pages")
}
