//! Which pages are allocated, and which are resident. Pure: no I/O, no lock.
//!
//! ```text
//! deficit              2                 one byte a node: k, if the largest free block of this part
//!              2               1         of the arena is 1/2^k of it; 0 if all of it is free
//!          2       1       0       -     (blocks are aligned to their size, as a buddy allocator's)
//! taken     11011010 11110000 00000000 11111111     one bit a page
//! resident  11111111 11111111 11100000 11111111     one bit a page
//! ```
//!
//! A page that is free and resident is reused without a page fault; one that is free and not resident has no memory.
//! All three tables are zero for an arena that was never used, so they cost memory only where pages were allocated.
//! Every operation is O(log n + words of the run); the two that scan say so.

use std::io;
use std::ops::Range;

use crate::sys::memory::Table;

/// Pages per word of the bitmaps.
const WORD: u32 = 64;

/// log2 of [`WORD`].
const WORD_ORDER: u32 = 6;

/// Holes that are tried for a run of exactly so many pages before it gets an aligned block.
const TRIES: u32 = 8;

/// New extents in which [`Runs::usual`] decays to 1/e.
const USUAL_TIME: u32 = 256;

/// The deficit of a part without a free page.
const FULL: u8 = 64;

/// Neighbouring pages of an arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PageRun {
    pub(crate) start: u32,
    pub(crate) len: u32,
}

impl PageRun {
    #[inline]
    pub(crate) fn new(start: u32, len: u32) -> PageRun {
        PageRun { start, len }
    }

    #[inline]
    pub(crate) fn end(self) -> u32 {
        self.start + self.len
    }

    pub(crate) fn range(self) -> Range<u32> {
        self.start..self.end()
    }
}

/// How far apart new extents are placed, in pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placement {
    /// Free pages that a new extent is given behind it where there are so many, so that it grows in place: as many as
    /// its rope holds already, within this range.
    pub(super) slack: (u32, u32),
    /// Slack is left in so many pages, or a third of those that are allocated, beyond these only. This bounds what becomes
    /// resident.
    pub(super) spread: u32,
    /// Shortest extent that is allocated below that bound instead of a longer one above it.
    pub(super) min_run: u32,
}

/// The state of every page of one arena.
pub(super) struct Runs {
    taken: Table<u64>,
    resident: Table<u64>,
    /// A complete binary tree: node 1 is the arena, the children of `i` are `2 * i` and `2 * i + 1`, the last `leaves`
    /// nodes are words.
    deficit: Table<u8>,
    leaves: usize,
    /// log2 of the pages under node 1.
    order: u32,
    total: u32,
    placement: Placement,
    allocated: u32,
    resident_pages: u32,
    resident_free: u32,
    /// No page at or above is free and resident.
    resident_end: u32,
    /// Pages that ropes have grown to lately, rounded up: new extents get as much slack.
    usual: u32,
}

impl Runs {
    /// # Errors
    ///
    /// When the tables cannot be mapped.
    pub(super) fn new(total: u32, placement: Placement) -> io::Result<Runs> {
        let words = total.div_ceil(WORD) as usize;
        let leaves = words.next_power_of_two();
        let mut runs = Runs {
            taken: Table::new(words)?,
            resident: Table::new(words)?,
            deficit: Table::new(2 * leaves)?,
            leaves,
            order: leaves.ilog2() + WORD_ORDER,
            total,
            placement,
            allocated: 0,
            resident_pages: 0,
            resident_free: 0,
            resident_end: 0,
            usual: 0,
        };
        runs.close_end();
        Ok(runs)
    }

    /// Marks what lies beyond the last page as allocated: O(log n) nodes.
    fn close_end(&mut self) {
        let words = self.taken.len();
        if self.total % WORD > 0 {
            self.taken[words - 1] = u64::MAX << (self.total % WORD);
            self.deficit[self.leaves + words - 1] = deficit_of(!self.taken[words - 1]);
        }
        let (mut node, mut end) = (self.leaves + words, 2 * self.leaves);
        while node < end {
            // The left child is closed with its parent; nothing looks below a full node.
            if node % 2 == 1 {
                self.deficit[node] = FULL;
                node += 1;
            }
            (node, end) = (node / 2, end / 2);
        }
        let mut node = (self.leaves + words - 1) / 2;
        while node > 0 {
            self.deficit[node] = joined(self.deficit[2 * node], self.deficit[2 * node + 1]);
            node /= 2;
        }
    }

    /// Pages of the arena.
    #[cfg(any(test, fuzzing))]
    pub(super) fn total(&self) -> u32 {
        self.total
    }

    /// Pages allocated.
    pub(super) fn allocated(&self) -> u32 {
        self.allocated
    }

    /// Pages resident, allocated or free.
    pub(super) fn resident(&self) -> u32 {
        self.resident_pages
    }

    /// Pages resident and free.
    pub(super) fn resident_free(&self) -> u32 {
        self.resident_free
    }

    /// Allocates 1 to `want` pages for a rope that holds `held` pages: the lowest place that has slack, for as many pages as
    /// ropes needed lately.
    ///
    /// Where slack is used up below the bound of [`Placement`], less slack comes first, then a shorter run, then any
    /// place.
    pub(super) fn allocate(&mut self, want: u32, held: u32) -> Option<PageRun> {
        let Placement { slack: (min, max), min_run, .. } = self.placement;
        let least = order_of(want);
        let most = order_of(held.max(self.usual).clamp(min, max).max(want));
        self.usual -= self.usual.div_ceil(USUAL_TIME);
        let bound = self.slack_bound();
        let below = |order: &u32| {
            let start = self.lowest(*order).filter(|start| u64::from(*start) + (1 << order) <= bound)?;
            Some((start, *order))
        };
        let slackest = (least..=most).rev().find_map(|order| below(&order));
        let place = slackest
            .or_else(|| (order_of(min_run).min(least)..least).rev().find_map(|order| below(&order)))
            .or_else(|| self.lowest_up_to(least));
        self.take_block(place?, want)
    }

    /// Allocates 1 to `want` pages for a rope that passes on what it receives: the lowest place, without slack.
    pub(super) fn allocate_packed(&mut self, want: u32) -> Option<PageRun> {
        let place = self.lowest_up_to(order_of(want))?;
        self.take_block(place, want)
    }

    /// The lowest free block of 2^`order` pages, or of as many as there are, and its order.
    fn lowest_up_to(&self, order: u32) -> Option<(u32, u32)> {
        let order = order.min(self.largest()?);
        Some((self.lowest(order)?, order))
    }

    fn take_block(&mut self, (start, order): (u32, u32), want: u32) -> Option<PageRun> {
        Some(self.take(PageRun::new(start, want.min(1 << order.min(31)))))
    }

    /// Allocates exactly `want` neighbouring pages. O(n) where no aligned block is large enough.
    pub(super) fn allocate_exact(&mut self, want: u32) -> Option<PageRun> {
        let start = self.lowest_unaligned(want);
        let start = start.or_else(|| self.lowest(order_of(want))).or_else(|| self.first_fit(want))?;
        Some(self.take(PageRun::new(start, want)))
    }

    /// The start of the lowest `want` free pages, a multiple of the least slack, so that other extents keep theirs. An
    /// aligned block of as many may lie twice as high, and what is allocated high becomes resident.
    ///
    /// Among so many pages is an aligned block of a quarter, rounded up to a power of two. O(log n + words of the run): it
    /// looks around [`TRIES`] of those.
    fn lowest_unaligned(&self, want: u32) -> Option<u32> {
        let order = order_of(want).checked_sub(2).filter(|order| *order >= WORD_ORDER)?;
        let mut from = 0;
        for _ in 0..TRIES {
            let block = self.lowest_from(order, from)?;
            let free_from = self.last_before(block, |word, runs| runs.taken[word]);
            let start = free_from.checked_next_multiple_of(self.placement.slack.0)?;
            if self.free_at(start, want) == want {
                return Some(start);
            }
            from = block + self.free_at(block, want.saturating_add(self.placement.slack.0));
        }
        None
    }

    /// Allocates the lowest 1 to `want` neighbouring pages that are resident. O(n): for when memory is short.
    pub(super) fn allocate_resident(&mut self, want: u32) -> Option<PageRun> {
        let start = self.find(0, self.resident_end, |word, runs| runs.reusable(word))?;
        let end =
            self.find(start, start.saturating_add(want).min(self.total), |word, runs| !runs.reusable(word));
        let end = end.unwrap_or(start.saturating_add(want).min(self.total));
        Some(self.take(PageRun::new(start, end - start)))
    }

    /// Allocates up to `want` pages from page `at` on, for an extent that ends there; returns how many.
    pub(super) fn grow(&mut self, at: u32, want: u32, held: u32) -> u32 {
        let max_slack = self.placement.slack.1;
        self.usual = self.usual.max((held.min(max_slack) + 1).next_power_of_two());
        // A rope that holds little passes on what it receives: above the bound it would walk on for ever, through
        // pages that are not resident.
        let min_slack = self.placement.slack.0;
        if at % min_slack == 0 && held < min_slack && u64::from(at) >= self.slack_bound() {
            return 0;
        }
        self.take(PageRun::new(at, self.free_at(at, want))).len
    }

    /// Allocates exactly `want` pages from page `at` on; returns whether it did.
    pub(super) fn grow_exact(&mut self, at: u32, want: u32) -> bool {
        let free = self.free_at(at, want) == want;
        if free {
            self.take(PageRun::new(at, want));
        }
        free
    }

    /// Returns whether the page is allocated; pages beyond the arena are.
    pub(super) fn is_allocated(&self, page: u32) -> bool {
        page >= self.total || self.taken[word_of(page)] >> (page % WORD) & 1 == 1
    }

    /// Frees pages. Those that are resident stay so.
    pub(super) fn free(&mut self, run: PageRun) {
        debug_assert!(run.range().all(|page| self.is_allocated(page)), "pages freed twice: {run:?}");
        let resident = self.resident_in(run);
        self.change(run, |word, mask| *word &= !mask);
        self.allocated -= run.len;
        self.resident_free += resident;
        if resident > 0 {
            self.resident_end = self.resident_end.max(run.end());
        }
    }

    /// Returns how many pages from the start of `run` on are resident.
    pub(super) fn resident_prefix(&self, run: PageRun) -> u32 {
        self.find(run.start, run.end(), |word, runs| !runs.resident[word])
            .map_or(run.len, |page| page - run.start)
    }

    /// Notes that these allocated pages have memory.
    pub(super) fn set_resident(&mut self, run: PageRun) {
        self.resident_pages += run.len - self.resident_in(run);
        words(run).for_each(|(word, mask)| self.resident[word] |= mask);
    }

    /// Notes that these allocated pages have no memory any more.
    pub(super) fn clear_resident(&mut self, run: PageRun) {
        self.resident_pages -= self.resident_in(run);
        words(run).for_each(|(word, mask)| self.resident[word] &= !mask);
    }

    /// Allocates up to `max` neighbouring pages that are resident, the highest ones, so that their memory can be given
    /// back. Amortised O(1) per page: the scan goes on where the last one ended.
    pub(super) fn take_highest_resident(&mut self, max: u32) -> Option<PageRun> {
        if max == 0 || self.resident_free == 0 {
            return None;
        }
        let end = self.last_before(self.resident_end, |word, runs| runs.reusable(word));
        let start = self.last_before(end, |word, runs| !runs.reusable(word)).max(end.saturating_sub(max));
        self.resident_end = start;
        Some(self.take(PageRun::new(start, end - start)))
    }

    fn slack_bound(&self) -> u64 {
        // The upper half is left to requests that need one run: address space is twice the capacity.
        let spread = self.placement.spread.max(self.allocated / 3);
        (u64::from(self.allocated) + u64::from(spread)).min(u64::from(self.total / 2))
    }

    fn take(&mut self, run: PageRun) -> PageRun {
        if run.len > 0 {
            self.change(run, |word, mask| *word |= mask);
            self.allocated += run.len;
            self.resident_free -= self.resident_in(run);
        }
        run
    }

    /// Changes words of `taken`, and the nodes above them.
    fn change(&mut self, run: PageRun, change: impl Fn(&mut u64, u64)) {
        for (word, mask) in words(run) {
            change(&mut self.taken[word], mask);
            self.deficit[self.leaves + word] = deficit_of(!self.taken[word]);
        }
        let (mut first, mut last) = (self.leaves + word_of(run.start), self.leaves + word_of(run.end() - 1));
        let mut changed = true;
        while first > 1 && changed {
            (first, last, changed) = (first / 2, last / 2, false);
            for node in first..=last {
                let deficit = joined(self.deficit[2 * node], self.deficit[2 * node + 1]);
                changed |= std::mem::replace(&mut self.deficit[node], deficit) != deficit;
            }
        }
    }

    /// The lowest free block of 2^`order` pages.
    fn lowest(&self, order: u32) -> Option<u32> {
        if self.has(1, self.order, order) { self.lowest_below(1, self.order, order) } else { None }
    }

    /// The lowest free block of 2^`order` pages that begins at page `from` or above, with a word or more in it.
    fn lowest_from(&self, order: u32, from: u32) -> Option<u32> {
        let nodes = 1usize << self.order.checked_sub(order)?;
        let index = from.div_ceil(1 << order) as usize;
        let (mut node, mut size) = (nodes + index, order);
        if index >= nodes {
            return None;
        }
        while !self.has(node, size, order) {
            // On to the next part of the arena, the larger the better.
            while node % 2 == 1 {
                (node, size) = (node / 2, size + 1);
            }
            if node == 0 {
                return None;
            }
            node += 1;
        }
        self.lowest_below(node, size, order)
    }

    /// Whether the 2^`size` pages under `node` have a free block of 2^`order`.
    #[inline]
    fn has(&self, node: usize, size: u32, order: u32) -> bool {
        size >= order + u32::from(self.deficit[node])
    }

    /// The lowest free block of 2^`order` pages under a node that has one.
    #[inline]
    fn lowest_below(&self, mut node: usize, mut size: u32, order: u32) -> Option<u32> {
        while size > order.max(WORD_ORDER) {
            size -= 1;
            node = 2 * node + usize::from(!self.has(2 * node, size, order));
        }
        let first = ((node as u64) << size) - (1 << self.order);
        let free = || !self.taken[node - self.leaves];
        let within = if order < WORD_ORDER { blocks(free(), order).trailing_zeros() } else { 0 };
        u32::try_from(first).ok().map(|first| first + within)
    }

    /// log2 of the pages in the largest free block.
    fn largest(&self) -> Option<u32> {
        self.order.checked_sub(u32::from(self.deficit[1]))
    }

    /// The lowest run of `want` free pages, aligned or not.
    fn first_fit(&self, want: u32) -> Option<u32> {
        let mut page = 0;
        loop {
            page = self.find(page, self.total, |word, runs| !runs.taken[word])?;
            let free = self.free_at(page, want);
            if free == want {
                return Some(page);
            }
            page += free;
        }
    }

    /// Pages from `at` on that are free, up to `max`.
    fn free_at(&self, at: u32, max: u32) -> u32 {
        let end = at.saturating_add(max).min(self.total);
        self.find(at, end, |word, runs| runs.taken[word]).unwrap_or(end).saturating_sub(at)
    }

    /// The bits of a word whose pages are free and resident.
    fn reusable(&self, word: usize) -> u64 {
        self.resident[word] & !self.taken[word]
    }

    fn resident_in(&self, run: PageRun) -> u32 {
        words(run).map(|(word, mask)| (self.resident[word] & mask).count_ones()).sum()
    }

    /// The first page in `from..end` whose bit is set in `bits`.
    fn find(&self, from: u32, end: u32, bits: impl Fn(usize, &Runs) -> u64) -> Option<u32> {
        let mut page = from;
        while page < end {
            let word = bits(word_of(page), self) >> (page % WORD);
            if word != 0 {
                return Some(page + word.trailing_zeros()).filter(|&found| found < end);
            }
            page = (page / WORD).checked_add(1)?.checked_mul(WORD)?;
        }
        None
    }

    /// One past the last page below `end` whose bit is set in `bits`; 0 if there is none.
    fn last_before(&self, end: u32, bits: impl Fn(usize, &Runs) -> u64) -> u32 {
        let mut end = end;
        while end > 0 {
            let at = (end - 1) / WORD;
            let word = bits(at as usize, self) << (WORD - 1 - (end - 1) % WORD);
            if word != 0 {
                return end - word.leading_zeros();
            }
            end = at * WORD;
        }
        0
    }

    /// Panics if the tables do not fit each other. O(n).
    #[cfg(any(test, fuzzing))]
    pub(super) fn assert_invariants(&self) {
        let count = |from: u32, bits: &dyn Fn(usize) -> u64| -> u32 {
            let pages = PageRun::new(from, self.total - from);
            words(pages).map(|(word, mask)| (bits(word) & mask).count_ones()).sum()
        };
        let reusable = |word| self.reusable(word);
        assert_eq!(count(0, &|word| self.taken[word]), self.allocated);
        assert_eq!(count(0, &|word| self.resident[word]), self.resident_pages);
        assert_eq!(count(0, &reusable), self.resident_free);
        assert_eq!(count(self.resident_end.min(self.total), &reusable), 0);
        let mut nodes = vec![1];
        while let Some(node) = nodes.pop() {
            let deficit = self.deficit[node];
            if let Some(&taken) = node.checked_sub(self.leaves).and_then(|word| self.taken.get(word)) {
                assert_eq!(deficit, deficit_of(!taken));
            } else if deficit != FULL {
                assert_eq!(deficit, joined(self.deficit[2 * node], self.deficit[2 * node + 1]));
                nodes.extend([2 * node, 2 * node + 1]);
            }
        }
    }
}

/// log2 of the smallest block that holds so many pages.
fn order_of(pages: u32) -> u32 {
    u64::from(pages.max(1)).next_power_of_two().ilog2()
}

#[inline]
fn word_of(page: u32) -> usize {
    (page / WORD) as usize
}

/// The words that a run touches, and a mask of its pages in each.
#[inline]
fn words(run: PageRun) -> impl Iterator<Item = (usize, u64)> {
    let mut page = run.start;
    std::iter::from_fn(move || {
        let len = (WORD - page % WORD).min(run.end() - page);
        let mask = u64::MAX.checked_shr(WORD - len)? << (page % WORD);
        let word = word_of(page);
        page += len;
        Some((word, mask))
    })
}

/// The deficit of a node whose children have these.
fn joined(left: u8, right: u8) -> u8 {
    if left | right == 0 { 0 } else { (1 + left.min(right)).min(FULL) }
}

/// The deficit of a word with these free pages.
fn deficit_of(free: u64) -> u8 {
    match free {
        0 => FULL,
        u64::MAX => 0,
        _ => (1..=6).find(|&deficit| blocks(free, WORD_ORDER - u32::from(deficit)) != 0).unwrap_or(FULL),
    }
}

/// The first bit of each aligned block of 2^`order` set bits.
fn blocks(mut word: u64, order: u32) -> u64 {
    const STARTS: [u64; 6] =
        [u64::MAX / 3, u64::MAX / 15, u64::MAX / 255, u64::MAX / 0xffff, u64::MAX / 0xffff_ffff, 1];
    for (step, starts) in STARTS.iter().enumerate().take(order as usize) {
        word &= word >> (1 << step) & starts;
    }
    word
}
