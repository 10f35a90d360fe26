//! Which pages of the arena are taken, and which of the others are warm. Pure: no I/O.
//!
//! Three bits a page, in bitmaps, so that neighbouring runs join by themselves:
//!
//! ```text
//!            taken  warm  mapped
//! cold free    0     0      0     never touched, or given back to the system
//! warm free    0     1      ·     has memory: handed out first
//! taken        1     ·      ·     owned by extents
//! ```
//!
//! *Mapped* pages are warm and in this process's page tables too, so that touching them costs no fault.

use std::ops::Range;

/// Pages per bitmap word.
const WORD: u32 = u64::BITS;

/// How many places a search for room looks at.
const MOST_TRIES: usize = 256;

/// A run of neighbouring pages, counted from the start of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u32,
    pub(crate) len: u32,
}

impl Run {
    pub(crate) fn end(self) -> u32 {
        self.start + self.len
    }

    pub(crate) fn range(self) -> Range<u32> {
        self.start..self.end()
    }
}

/// Pages that were just taken, and how many of them, from the first on, are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) run: Run,
    pub(crate) mapped: u32,
}

impl Taken {
    /// Pages that all are.
    #[cfg(any(test, loom))]
    pub(crate) fn mapped(run: Run) -> Taken {
        Taken { run, mapped: run.len }
    }

    /// Those of them that are in `part`.
    #[inline]
    pub(crate) fn part(self, part: Range<u32>) -> Taken {
        let run = Run { start: part.start, len: part.end - part.start };
        debug_assert!(self.run.start <= run.start && run.end() <= self.run.end());
        Taken { run, mapped: self.mapped.saturating_sub(run.start - self.run.start).min(run.len) }
    }

    /// Notes that those of `run`, which is some of them, are mapped.
    pub(crate) fn set_mapped(&mut self, run: Run) {
        if run.start - self.run.start <= self.mapped {
            self.mapped = self.mapped.max(run.end() - self.run.start);
        }
    }

    /// Adds pages that follow.
    pub(crate) fn append(&mut self, more: Taken) {
        debug_assert_eq!(self.run.end(), more.run.start);
        if self.mapped == self.run.len {
            self.mapped += more.mapped;
        }
        self.run.len += more.run.len;
    }
}

/// What a search looks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Free,
    Warm,
    Mapped,
    WarmFree,
}

/// The bits of 64 pages, side by side because most of what is done looks at all three.
type Word = [u64; 3];

/// Owned by an extent.
const TAKEN: usize = 0;
/// Has memory.
const WARM: usize = 1;
/// Warm, and in the page tables.
const MAPPED: usize = 2;

/// The state of every page of one arena.
pub(crate) struct Pages {
    /// Number of pages.
    total: u32,
    words: Vec<Word>,
    /// No page below is free and warm.
    low_warm: u32,
    /// No page below is free.
    low_free: u32,
    /// No page at or above was ever taken.
    top: u32,
    /// Pages taken.
    in_use: u32,
    /// Pages free and warm.
    warm_free: u32,
}

impl Pages {
    pub(crate) fn new(total: u32) -> Pages {
        let words = total.div_ceil(WORD) as usize;
        Pages {
            total,
            // A zeroed vector of this size comes from the system untouched: the bitmaps cost what is used.
            words: vec![[0; 3]; words],
            low_warm: 0,
            low_free: 0,
            top: 0,
            in_use: 0,
            warm_free: 0,
        }
    }

    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    pub(crate) fn in_use(&self) -> u32 {
        self.in_use
    }

    /// No page at or above was ever taken.
    pub(crate) fn top(&self) -> u32 {
        self.top
    }

    pub(crate) fn warm_free(&self) -> u32 {
        self.warm_free
    }

    /// Takes up to `want` neighbouring pages, at least one: warm before cold, low before high.
    /// A run shorter than `enough` is taken only if there is none of that length.
    ///
    /// `None` when every page is taken.
    pub(crate) fn take(&mut self, want: u32, enough: u32) -> Option<Taken> {
        let enough = enough.min(want);
        let run = self
            .first_fit(Kind::WarmFree, enough, want)
            .or_else(|| self.first_fit(Kind::Free, enough, want))
            .or_else(|| self.first_fit(Kind::Free, 1, want))?;
        Some(self.mark_taken(run))
    }

    /// Takes up to `want` neighbouring pages of `part`, at least `enough`: warm before cold, low before high.
    pub(crate) fn take_within(&mut self, part: Range<u32>, want: u32, enough: u32) -> Option<Taken> {
        let enough = enough.min(want);
        let fit = |kind| self.fit(kind, part.clone(), enough, want);
        let run = fit(Kind::WarmFree).or_else(|| fit(Kind::Free))?;
        Some(self.mark_taken(run))
    }

    /// Takes `want` pages at a multiple of `room` pages where so many are free, so that what begins there can
    /// grow. The first one from page `from` on: warm before cold, and not from the end of a long search.
    pub(crate) fn take_apart(&mut self, from: u32, room: u32, want: u32) -> Option<Taken> {
        let starts = |range: Range<u32>| range.step_by(room as usize);
        let from = from.next_multiple_of(room);
        let all = starts(from..self.total).chain(starts(0..from.min(self.total)));
        let is_free =
            |&start: &u32| !self.is_taken(start) && self.run_at(Kind::Free, start, room).len == room;
        let mut free = all.take(MOST_TRIES).filter(is_free).peekable();
        let first = *free.peek()?;
        let warm = free.find(|&start| self.run_at(Kind::WarmFree, start, 1).len > 0);
        Some(self.mark_taken(Run { start: warm.unwrap_or(first), len: want }))
    }

    /// Takes exactly `want` neighbouring pages, at the lowest address where they are free.
    pub(crate) fn take_exact(&mut self, want: u32) -> Option<Taken> {
        let run =
            self.first_fit(Kind::WarmFree, want, want).or_else(|| self.first_fit(Kind::Free, want, want))?;
        Some(self.mark_taken(run))
    }

    /// Takes up to `want` pages from page `at` on, so that the extent that ends there grows in place.
    ///
    /// Cold pages are taken up to the next multiple of `room`, and beyond that only if no warm run of `enough`
    /// pages waits elsewhere: a second extent costs a map when the rope is finalised, a cold page costs a fault.
    pub(crate) fn take_at(&mut self, at: u32, want: u32, enough: u32, room: u32) -> Option<Taken> {
        let warm = self.run_at(Kind::WarmFree, at, want);
        let mut cold = want;
        if warm.len < want && self.first_fit_outside(enough.min(want), warm).is_some() {
            // How far it is to that multiple, a power of two.
            cold = want.min(at.wrapping_neg() % room);
        }
        let run = if warm.len < cold { self.run_at(Kind::Free, at, cold) } else { warm };
        (run.len > 0).then(|| self.mark_taken(run))
    }

    /// Takes exactly `want` pages from page `at` on.
    pub(crate) fn take_exact_at(&mut self, at: u32, want: u32) -> Option<Taken> {
        let run = self.run_at(Kind::Free, at, want);
        (run.len == want).then(|| self.mark_taken(run))
    }

    /// Whether somebody owns this page.
    pub(crate) fn is_taken(&self, page: u32) -> bool {
        self.bit(TAKEN, page)
    }

    /// Gives pages back; those that were committed stay warm.
    pub(crate) fn give(&mut self, run: Run) {
        let (mut taken, mut warm) = (0, 0);
        self.each_word(run, |word, mask, len| {
            taken += count(word[TAKEN], mask, len);
            warm += count(word[WARM], mask, len);
            word[TAKEN] &= !mask;
        });
        debug_assert_eq!(taken, run.len, "pages given back twice: {run:?}");
        self.in_use -= run.len;
        self.warm_free += warm;
        self.low_free = self.low_free.min(run.start);
        self.low_warm = self.low_warm.min(run.start);
    }

    /// Takes up to `max` warm free pages from the top down, to be handed back to the system.
    pub(crate) fn take_highest_warm(&mut self, max: u32) -> Option<Run> {
        if max == 0 || self.warm_free == 0 {
            return None;
        }
        let end = self.find_last(self.top, true)?;
        let start = self.find_last(end, false).unwrap_or(0).max(end.saturating_sub(max));
        Some(self.mark_taken(Run { start, len: end - start }).run)
    }

    /// How many of a few pages have memory.
    pub(crate) fn warm_in(&self, run: Run) -> u32 {
        run.range().map(|page| u32::from(self.bit(WARM, page))).sum()
    }

    /// How many pages from the start of `run` on have memory.
    pub(crate) fn warm_prefix(&self, run: Run) -> u32 {
        self.find(Kind::Warm, run.start, run.end(), false) - run.start
    }

    /// How many pages from the start of `run` on are mapped.
    pub(crate) fn mapped_prefix(&self, run: Run) -> u32 {
        self.find(Kind::Mapped, run.start, run.end(), false) - run.start
    }

    /// Notes that these pages, which the caller owns, have memory.
    pub(crate) fn set_warm(&mut self, run: Run) {
        self.each_word(run, |word, mask, _| word[WARM] |= mask);
    }

    /// Notes that these pages, which the caller owns, have memory and are in the page tables.
    pub(crate) fn set_mapped(&mut self, run: Run) {
        self.each_word(run, |word, mask, _| {
            word[WARM] |= mask;
            word[MAPPED] |= mask;
        });
    }

    /// Notes that these pages, which the caller owns, have no memory any more.
    pub(crate) fn set_cold(&mut self, run: Run) {
        self.each_word(run, |word, mask, _| {
            word[WARM] &= !mask;
            word[MAPPED] &= !mask;
        });
    }

    fn mark_taken(&mut self, run: Run) -> Taken {
        let (mut warm, mut mapped) = (0, true);
        self.each_word(run, |word, mask, len| {
            word[TAKEN] |= mask;
            warm += count(word[WARM], mask, len);
            mapped &= word[MAPPED] & mask == mask;
        });
        self.in_use += run.len;
        self.warm_free -= warm;
        self.top = self.top.max(run.end());
        if self.low_warm >= run.start {
            self.low_warm = self.low_warm.max(run.end());
        }
        if self.low_free >= run.start {
            self.low_free = self.low_free.max(run.end());
        }
        Taken { run, mapped: if mapped { run.len } else { self.mapped_prefix(run) } }
    }

    /// The lowest run of at least `len` pages, and up to `most` of it.
    fn first_fit(&mut self, kind: Kind, len: u32, most: u32) -> Option<Run> {
        if kind == Kind::WarmFree && self.warm_free < len {
            return None;
        }
        let limit = self.limit(kind);
        let first = self.next_run(kind, self.low(kind)..limit, most)?;
        self.set_low(kind, first.start);
        if first.len >= len { Some(first) } else { self.fit(kind, first.end()..limit, len, most) }
    }

    /// The lowest run of at least `len` pages in `part`, and up to `most` of it.
    fn fit(&self, kind: Kind, part: Range<u32>, len: u32, most: u32) -> Option<Run> {
        let mut run = self.next_run(kind, part.clone(), most)?;
        while run.len < len {
            run = self.next_run(kind, run.end()..part.end, most)?;
        }
        Some(run)
    }

    /// Like `first_fit` for warm pages, leaving `except` aside.
    fn first_fit_outside(&mut self, len: u32, except: Run) -> Option<Run> {
        let mut run = self.first_fit(Kind::WarmFree, len, len)?;
        while run.start == except.start || run.len < len {
            let from = if run.start == except.start { except.end() } else { run.end() };
            run = self.next_run(Kind::WarmFree, from..self.top, len)?;
        }
        Some(run)
    }

    fn low(&self, kind: Kind) -> u32 {
        if kind == Kind::WarmFree { self.low_warm } else { self.low_free }
    }

    fn set_low(&mut self, kind: Kind, page: u32) {
        *(if kind == Kind::WarmFree { &mut self.low_warm } else { &mut self.low_free }) = page;
    }

    /// Where pages of this kind end.
    fn limit(&self, kind: Kind) -> u32 {
        if kind == Kind::WarmFree { self.top } else { self.total }
    }

    /// The first run in `part`, and up to `most` pages of it.
    #[inline]
    fn next_run(&self, kind: Kind, part: Range<u32>, most: u32) -> Option<Run> {
        let start = self.find(kind, part.start, part.end, true);
        let run = self.run_at(kind, start, most.min(part.end.saturating_sub(start)));
        (run.len > 0).then_some(run)
    }

    /// The run that starts at page `at`, cut to `max` pages; it may be empty.
    #[inline]
    fn run_at(&self, kind: Kind, at: u32, max: u32) -> Run {
        let limit = at.saturating_add(max).min(self.total);
        Run { start: at, len: self.find(kind, at, limit, false).saturating_sub(at) }
    }

    /// The first page in `from..limit` that is (`wanted`) or is not of this kind; `limit` if none is.
    #[inline]
    fn find(&self, kind: Kind, from: u32, limit: u32, wanted: bool) -> u32 {
        let mut page = from;
        while page < limit {
            let word = self.word(kind, (page / WORD) as usize);
            let word = (if wanted { word } else { !word }) >> (page % WORD);
            if word != 0 {
                return (page + word.trailing_zeros()).min(limit);
            }
            page = (page / WORD + 1) * WORD;
        }
        limit.max(from)
    }

    /// One past the last page below `end` that is (`wanted`) or is not free and warm.
    fn find_last(&self, end: u32, wanted: bool) -> Option<u32> {
        let mut end = end;
        while end > 0 {
            let at = (end - 1) / WORD;
            let word = self.word(Kind::WarmFree, at as usize);
            let word = (if wanted { word } else { !word }) << (WORD - 1 - (end - 1) % WORD);
            if word != 0 {
                return Some(end - word.leading_zeros());
            }
            end = at * WORD;
        }
        None
    }

    #[inline]
    fn word(&self, kind: Kind, at: usize) -> u64 {
        let word = &self.words[at];
        match kind {
            Kind::Free => !word[TAKEN],
            Kind::Warm => word[WARM],
            Kind::Mapped => word[MAPPED],
            Kind::WarmFree => word[WARM] & !word[TAKEN],
        }
    }

    /// Calls `each` with every word that `run` touches, the mask of its pages in that word, and how many they are.
    #[inline]
    fn each_word(&mut self, run: Run, mut each: impl FnMut(&mut Word, u64, u32)) {
        let mut page = run.start;
        while page < run.end() {
            let in_word = (WORD - page % WORD).min(run.end() - page);
            let mask = (u64::MAX >> (WORD - in_word)) << (page % WORD);
            each(&mut self.words[(page / WORD) as usize], mask, in_word);
            page += in_word;
        }
    }

    fn bit(&self, kind: usize, page: u32) -> bool {
        self.words[(page / WORD) as usize][kind] >> (page % WORD) & 1 == 1
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn assert_invariants(&self) {
        let taken = |page| self.is_taken(page);
        let warm_free = |page| self.bit(WARM, page) && !taken(page);
        let pages = || 0..self.total;
        assert_eq!(pages().filter(|&p| taken(p)).count(), self.in_use as usize);
        assert_eq!(pages().filter(|&p| warm_free(p)).count(), self.warm_free as usize);
        assert!(pages().filter(|&p| taken(p)).all(|p| p < self.top));
        assert!(pages().filter(|&p| !taken(p)).all(|p| p >= self.low_free));
        assert!(pages().filter(|&p| warm_free(p)).all(|p| p >= self.low_warm && p < self.top));
    }
}

/// How many of the `len` pages in `mask` have their bit set: as a rule all, which is seen without counting.
#[inline]
fn count(word: u64, mask: u64, len: u32) -> u32 {
    if word & mask == mask { len } else { (word & mask).count_ones() }
}
