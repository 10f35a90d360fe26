//! Page runs against a naive model. Shared by the property test and the fuzzer.

use super::runs::{PageRun, Placement, Runs};

/// What to do, and two numbers to do it with.
pub(crate) type Step = (u8, u16, u16);

/// Small sizes, so that slack and its bound are met.
const PLACEMENT: Placement = Placement { slack: (16, 64), spread: 40, min_run: 4 };

/// Takes these steps with `total` pages and compares everything after each.
pub(crate) fn check(total: u32, steps: &[Step]) {
    let runs = Runs::new(total, PLACEMENT).expect("tables are mapped");
    let mut model = Model { runs, naive: vec![Page::default(); total as usize], owned: Vec::new(), usual: 0 };
    for &(what, a, b) in steps {
        model.step(what, u32::from(a), u32::from(b));
        model.compare();
    }
}

#[derive(Clone, Copy, Default)]
struct Page {
    allocated: bool,
    resident: bool,
}

struct Model {
    runs: Runs,
    naive: Vec<Page>,
    /// What was allocated and not yet freed.
    owned: Vec<PageRun>,
    /// What ropes needed lately.
    usual: u32,
}

impl Model {
    fn step(&mut self, what: u8, a: u32, b: u32) {
        let want = 1 + a % 200;
        match what % 10 {
            0 | 1 => self.allocate(want, b % 100),
            9 => self.allocate_packed(want),
            2 => self.allocate_exact(want),
            3 => self.allocate_resident(want),
            4 => self.grow(b, want, a % 30),
            5 => self.grow_exact(b, want),
            6 => self.free(a, b),
            7 => self.give_back(want, b % 4 > 0),
            _ => self.make_resident(a, b),
        }
    }

    fn allocate(&mut self, want: u32, held: u32) {
        let Placement { slack: (min, max), min_run, .. } = PLACEMENT;
        let order = |pages: u32| pages.next_power_of_two().ilog2();
        let bound = self.bound();
        let (least, most) = (order(want), order(held.max(self.usual).clamp(min, max).max(want)));
        self.usual -= self.usual.div_ceil(256);
        let below = |order: u32| self.block(order).filter(|start| start + (1 << order) <= bound);
        let orders = (least..=most).rev().chain((order(min_run).min(least)..least).rev());
        let expected = orders
            .clone()
            .find_map(|order| Some((below(order)?, order)))
            .or_else(|| (0..=least).rev().find_map(|order| Some((self.block(order)?, order))))
            .map(|(start, order)| PageRun::new(start, want.min(1 << order)));
        let run = self.runs.allocate(want, held);
        self.allocated(run, expected);
    }

    fn allocate_packed(&mut self, want: u32) {
        let least = want.next_power_of_two().ilog2();
        let block = (0..=least).rev().find_map(|order| Some((self.block(order)?, order)));
        let run = self.runs.allocate_packed(want);
        self.allocated(run, block.map(|(start, order)| PageRun::new(start, want.min(1 << order))));
    }

    fn allocate_exact(&mut self, want: u32) {
        let unaligned = || (0..self.naive.len() as u32).find(|&at| self.free_at(at, want) == want);
        let start = self.unaligned(want);
        let start = start.or_else(|| self.block(want.next_power_of_two().ilog2())).or_else(unaligned);
        let run = self.runs.allocate_exact(want);
        self.allocated(run, start.map(|start| PageRun::new(start, want)));
    }

    /// The first of eight holes with an aligned quarter that have room from a multiple of the least slack on.
    fn unaligned(&self, want: u32) -> Option<u32> {
        let quarter = want.next_power_of_two() / 4;
        let starts = (0..self.naive.len() as u32).step_by(quarter.max(1) as usize);
        let mut blocks: Vec<u32> = Vec::new();
        for block in starts.filter(|&at| quarter >= 64 && self.free_at(at, quarter) == quarter) {
            // One of each hole.
            if blocks.last().is_none_or(|&last| self.free_at(last, block - last) < block - last) {
                blocks.push(block);
            }
        }
        blocks.truncate(8);
        let starts = blocks.into_iter().map(|block| {
            let below = (0..block).rev().take_while(|&at| self.free_at(at, 1) == 1);
            below.last().unwrap_or(block).next_multiple_of(PLACEMENT.slack.0)
        });
        starts.into_iter().find(|&start| self.free_at(start, want) == want)
    }

    fn allocate_resident(&mut self, want: u32) {
        let start = (0..).zip(&self.naive).find(|(_, page)| is_idle(page)).map(|(at, _)| at);
        let expected = start.map(|start| PageRun::new(start, self.run_at(start, want, is_idle)));
        let run = self.runs.allocate_resident(want);
        self.allocated(run, expected);
    }

    fn grow(&mut self, which: u32, want: u32, held: u32) {
        let Some(at) = self.pick(which).map(|owned| self.owned[owned].end()) else { return };
        let (min, _) = PLACEMENT.slack;
        self.usual = self.usual.max((held.min(PLACEMENT.slack.1) + 1).next_power_of_two());
        let stops = at % min == 0 && held < min && at >= self.bound();
        let expected = PageRun::new(at, if stops { 0 } else { self.free_at(at, want) });
        let run = PageRun::new(at, self.runs.grow(at, want, held));
        self.allocated(Some(run).filter(|run| run.len > 0), Some(expected).filter(|run| run.len > 0));
    }

    fn grow_exact(&mut self, which: u32, want: u32) {
        let Some(at) = self.pick(which).map(|owned| self.owned[owned].end()) else { return };
        let expected = (self.free_at(at, want) == want).then_some(PageRun::new(at, want));
        let run = self.runs.grow_exact(at, want).then_some(PageRun::new(at, want));
        self.allocated(run, expected);
    }

    fn free(&mut self, which: u32, part: u32) {
        let Some(owned) = self.pick(which) else { return };
        let PageRun { start, len } = self.owned.swap_remove(owned);
        // All of it, or from somewhere inside on.
        let keep = if part % 2 == 0 { 0 } else { part % len };
        if keep > 0 {
            self.owned.push(PageRun::new(start, keep));
        }
        self.free_run(PageRun::new(start + keep, len - keep));
    }

    fn free_run(&mut self, run: PageRun) {
        self.runs.free(run);
        self.each(run, |page| page.allocated = false);
    }

    /// As the pool gives memory back to the system, where that takes it.
    fn give_back(&mut self, max: u32, taken_back: bool) {
        let end = self.naive.iter().rposition(is_idle).map_or(0, |at| at as u32 + 1);
        let len = self.naive[..end as usize]
            .iter()
            .rev()
            .take(max as usize)
            .take_while(|page| is_idle(page))
            .count();
        let expected = (end > 0).then(|| PageRun::new(end - len as u32, len as u32));
        let run = self.runs.take_highest_resident(max);
        assert_eq!(run, expected);
        let Some(run) = run else { return };
        self.each(run, |page| page.allocated = true);
        if taken_back {
            self.runs.clear_resident(run);
            self.each(run, |page| page.resident = false);
        }
        self.free_run(run);
    }

    fn make_resident(&mut self, which: u32, part: u32) {
        let Some(owned) = self.pick(which) else { return };
        let PageRun { start, len } = self.owned[owned];
        let run = PageRun::new(start, 1 + part % len);
        self.runs.set_resident(run);
        self.each(run, |page| page.resident = true);
    }

    fn allocated(&mut self, run: Option<PageRun>, expected: Option<PageRun>) {
        assert_eq!(run, expected);
        let Some(run) = run else { return };
        let resident = self.naive[run.start as usize..run.end() as usize].iter();
        assert_eq!(
            self.runs.resident_prefix(run) as usize,
            resident.take_while(|page| page.resident).count()
        );
        self.each(run, |page| assert!(!std::mem::replace(&mut page.allocated, true)));
        self.owned.push(run);
    }

    fn compare(&self) {
        self.runs.assert_invariants();
        assert_eq!(self.runs.allocated(), self.count(|page| page.allocated));
        assert_eq!(self.runs.resident(), self.count(|page| page.resident));
        assert_eq!(self.runs.resident_free(), self.count(is_idle));
        assert!((0..).zip(&self.naive).all(|(at, page)| self.runs.is_allocated(at) == page.allocated));
    }

    fn bound(&self) -> u32 {
        let allocated = self.count(|page| page.allocated);
        (allocated + PLACEMENT.spread.max(allocated / 3)).min(self.naive.len() as u32 / 2)
    }

    fn pick(&self, which: u32) -> Option<usize> {
        (which as usize).checked_rem(self.owned.len())
    }

    fn each(&mut self, run: PageRun, change: impl FnMut(&mut Page)) {
        self.naive[run.start as usize..run.end() as usize].iter_mut().for_each(change);
    }

    fn count(&self, what: impl Fn(&Page) -> bool) -> u32 {
        self.naive.iter().filter(|page| what(page)).count() as u32
    }

    /// The lowest free block of 2^`order` pages.
    fn block(&self, order: u32) -> Option<u32> {
        let size = 1usize << order;
        let mut blocks = self.naive.chunks_exact(size);
        blocks.position(|block| block.iter().all(|page| !page.allocated)).map(|at| (at * size) as u32)
    }

    fn free_at(&self, at: u32, max: u32) -> u32 {
        self.run_at(at, max, |page| !page.allocated)
    }

    fn run_at(&self, at: u32, max: u32, what: fn(&Page) -> bool) -> u32 {
        let pages = self.naive.iter().skip(at as usize).take(max as usize);
        pages.take_while(|page| what(page)).count() as u32
    }
}

fn is_idle(page: &Page) -> bool {
    page.resident && !page.allocated
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Miri is some hundred times slower.
    const MAX: (u32, usize) = if cfg!(miri) { (100, 12) } else { (600, 120) };

    proptest! {
        #[test]
        fn page_runs_are_those_of_a_naive_model(
            total in 1..MAX.0,
            steps in prop::collection::vec(any::<super::Step>(), 0..MAX.1),
        ) {
            super::check(total, &steps);
        }
    }
}
