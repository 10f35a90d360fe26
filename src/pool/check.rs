//! Page runs against a naive model. Shared by the property test and the fuzzer.

use super::pages::{Pages, Run, Taken};

/// What to do, and two numbers to do it with.
pub(crate) type Step = (u8, u16, u16);

/// Takes these steps with `total` pages and compares everything after each.
pub(crate) fn check(total: u32, steps: &[Step]) {
    let mut model =
        Model { pages: Pages::new(total), naive: vec![Page::default(); total as usize], owned: Vec::new() };
    for &(what, a, b) in steps {
        model.step(what, u32::from(a), u32::from(b));
        model.compare();
    }
}

/// Pages of room, as the pool asks for.
const ROOM: u32 = 16;

#[derive(Clone, Copy, Default)]
struct Page {
    taken: bool,
    warm: bool,
    mapped: bool,
}

struct Model {
    pages: Pages,
    naive: Vec<Page>,
    /// What was taken and not yet given back.
    owned: Vec<Run>,
}

impl Model {
    fn step(&mut self, what: u8, a: u32, b: u32) {
        let (want, enough) = (1 + a % 200, 1 + b % 20);
        match what % 10 {
            0 => self.take(want, enough),
            1 => self.take_exact(want),
            2 => self.take_at(b, want, enough),
            3 => self.take_exact_at(b, want),
            4 => self.give(a, b),
            5 => self.give_back(want, b % 4 > 0),
            6 => self.warm(a, b, false),
            7 => self.take_within(b, want, enough),
            8 => self.take_apart(b, want),
            _ => self.warm(a, b, true),
        }
    }

    fn take(&mut self, want: u32, enough: u32) {
        let enough = enough.min(want);
        let first = |runs: Vec<Run>, least: u32| runs.into_iter().find(|run| run.len >= least);
        let expected = first(self.runs(is_warm_free), enough)
            .or_else(|| first(self.runs(is_free), enough))
            .or_else(|| first(self.runs(is_free), 1))
            .map(|run| Run { len: run.len.min(want), ..run });
        let taken = self.pages.take(want, enough);
        self.taken(taken, expected);
    }

    fn take_within(&mut self, part: u32, want: u32, enough: u32) {
        let total = self.pages.total();
        let part = part % 256 % total..total - (part / 256) % total;
        let first = |what| {
            let within = |run: Run| {
                let (start, end) = (run.start.max(part.start), run.end().min(part.end));
                Run { start, len: end.saturating_sub(start) }
            };
            self.runs(what).into_iter().map(within).find(|run| run.len >= enough.min(want))
        };
        let expected =
            first(is_warm_free).or_else(|| first(is_free)).map(|run| Run { len: run.len.min(want), ..run });
        let taken = self.pages.take_within(part, want, enough);
        self.taken(taken, expected);
    }

    fn take_apart(&mut self, from: u32, want: u32) {
        let total = self.pages.total();
        let room = ROOM.max(want.next_power_of_two());
        // The first one behind `from`, and round again.
        let mut starts: Vec<_> = (0..total).step_by(room as usize).collect();
        let first = starts.iter().position(|&start| start >= from % total).unwrap_or(0);
        starts.rotate_left(first);
        starts.retain(|&start| self.run_at(start, room, is_free).len == room);
        let warm = starts.iter().find(|&&start| is_warm_free(&self.naive[start as usize]));
        let expected = warm.or(starts.first()).map(|&start| Run { start, len: want });
        let taken = self.pages.take_apart(from % total, room, want);
        self.taken(taken, expected);
    }

    fn take_exact(&mut self, want: u32) {
        let first = |runs: Vec<Run>| runs.into_iter().find(|run| run.len >= want);
        let expected = first(self.runs(is_warm_free))
            .or_else(|| first(self.runs(is_free)))
            .map(|run| Run { len: want, ..run });
        let taken = self.pages.take_exact(want);
        self.taken(taken, expected);
    }

    fn take_at(&mut self, which: u32, want: u32, enough: u32) {
        let Some(at) = self.pick(which).map(|owned| self.owned[owned].end()) else { return };
        let warm = self.run_at(at, want, is_warm_free);
        let elsewhere =
            self.runs(is_warm_free).into_iter().any(|run| run.len >= enough.min(want) && run.start != at);
        let cold = if elsewhere { want.min(at.next_multiple_of(ROOM) - at) } else { want };
        let run = if warm.len < cold { self.run_at(at, cold, is_free) } else { warm };
        let taken = self.pages.take_at(at, want, enough, ROOM);
        self.taken(taken, Some(run).filter(|run| run.len > 0));
    }

    fn take_exact_at(&mut self, which: u32, want: u32) {
        let Some(at) = self.pick(which).map(|owned| self.owned[owned].end()) else { return };
        let run = self.run_at(at, want, is_free);
        let taken = self.pages.take_exact_at(at, want);
        self.taken(taken, Some(run).filter(|run| run.len == want));
    }

    fn give(&mut self, which: u32, part: u32) {
        let Some(owned) = self.pick(which) else { return };
        let Run { start, len } = self.owned.swap_remove(owned);
        // All of it, or from somewhere inside on.
        let keep = if part % 2 == 0 { 0 } else { part % len };
        if keep > 0 {
            self.owned.push(Run { start, len: keep });
        }
        self.give_run(Run { start: start + keep, len: len - keep });
    }

    fn give_run(&mut self, run: Run) {
        self.pages.give(run);
        self.each(run, |page| page.taken = false);
    }

    /// As the pool gives memory back to the system, where that takes it.
    fn give_back(&mut self, max: u32, taken_back: bool) {
        let expected = self.runs(is_warm_free).pop().map(|run| {
            let len = run.len.min(max);
            Run { start: run.end() - len, len }
        });
        let run = self.pages.take_highest_warm(max);
        assert_eq!(run, expected);
        let Some(run) = run else { return };
        self.each(run, |page| page.taken = true);
        if taken_back {
            self.pages.set_cold(run);
            self.each(run, |page| *page = Page { taken: true, ..Page::default() });
        }
        self.give_run(run);
    }

    fn warm(&mut self, which: u32, part: u32, mapped: bool) {
        let Some(owned) = self.pick(which) else { return };
        let Run { start, len } = self.owned[owned];
        let run = Run { start, len: 1 + part % len };
        if mapped {
            self.pages.set_mapped(run);
        } else {
            self.pages.set_warm(run);
        }
        self.each(run, |page| {
            page.warm = true;
            page.mapped |= mapped;
        });
        assert!(
            self.pages.warm_prefix(run) == run.len && (!mapped || self.pages.mapped_prefix(run) == run.len)
        );
    }

    fn taken(&mut self, taken: Option<Taken>, expected: Option<Run>) {
        assert_eq!(taken.map(|taken| taken.run), expected);
        let Some(Taken { run, mapped }) = taken else { return };
        let prefix = run.range().take_while(|&page| self.naive[page as usize].mapped).count();
        assert_eq!(mapped as usize, prefix);
        self.each(run, |page| {
            assert!(!page.taken);
            page.taken = true;
        });
        self.owned.push(run);
    }

    fn compare(&self) {
        self.pages.assert_invariants();
        let count = |what: fn(&Page) -> bool| self.naive.iter().filter(|page| what(page)).count();
        assert_eq!(self.pages.in_use() as usize, count(|page| page.taken));
        assert_eq!(self.pages.warm_free() as usize, count(is_warm_free));
        assert!((0..).zip(&self.naive).all(|(at, page)| self.pages.is_taken(at) == page.taken));
    }

    fn pick(&self, which: u32) -> Option<usize> {
        (which as usize).checked_rem(self.owned.len())
    }

    fn each(&mut self, run: Run, change: impl FnMut(&mut Page)) {
        self.naive[run.start as usize..run.end() as usize].iter_mut().for_each(change);
    }

    /// The longest runs of such pages.
    fn runs(&self, what: fn(&Page) -> bool) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (start, _) in (0..).zip(&self.naive).filter(|(_, page)| what(page)) {
            match runs.last_mut() {
                Some(run) if run.end() == start => run.len += 1,
                _ => runs.push(Run { start, len: 1 }),
            }
        }
        runs
    }

    fn run_at(&self, at: u32, max: u32, what: fn(&Page) -> bool) -> Run {
        let pages = self.naive.iter().skip(at as usize).take(max as usize);
        Run { start: at, len: pages.take_while(|page| what(page)).fold(0, |len, _| len + 1) }
    }
}

fn is_free(page: &Page) -> bool {
    !page.taken
}

fn is_warm_free(page: &Page) -> bool {
    page.warm && !page.taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn page_runs_are_those_of_a_naive_model(
            total in 1..300u32,
            steps in prop::collection::vec(any::<super::Step>(), 0..120),
        ) {
            super::check(total, &steps);
        }
    }
}
