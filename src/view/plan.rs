//! How a view is laid out. Pure: no I/O, no pointers.
//!
//! A page can have a second address, a byte cannot: a run can be mapped only where its offset in the arena and its
//! position in the view agree modulo the page size. The view may start anywhere in its first page. The bytes before it,
//! the *lead*, decide which runs agree:
//!
//! ```text
//! rope      │header 40 B│ run of the arena, page-aligned                    │
//! view    ┌─┴───────────┼───────────────────────────────────────────────────┤
//!         │lead          │ mapped
//!         └ page boundary└ page boundary
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

/// A segment: its length, and its offset in the arena if it lies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) offset: Option<usize>,
    pub(crate) len: usize,
}

/// What a plan is bound by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Bytes per page, a power of two.
    pub(crate) page: usize,
    /// Shortest run that is mapped.
    pub(crate) min_map: usize,
    /// Most maps.
    pub(crate) max_maps: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// The bytes are contiguous in the arena, from this offset on.
    Borrow { offset: usize },
    /// No run can be mapped, or none is long enough.
    Copy,
    /// Some runs are mapped, the rest is copied.
    Map(Layout),
}

/// Where the bytes go in a range of whole pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of the range before the view; less than a page.
    pub(crate) lead: usize,
    /// In ascending order.
    pub(crate) maps: Vec<Map>,
    /// Positions that are copied, in ascending order: those that no map covers.
    pub(crate) copies: Vec<Range<usize>>,
}

/// Whole pages of the arena and their second address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Map {
    /// Positions of the view that these pages hold.
    pub(crate) covers: Range<usize>,
    /// Bytes from the start of the range to them: a multiple of the page size.
    pub(crate) at: usize,
    /// Their offset in the arena: a multiple of the page size.
    pub(crate) offset: usize,
    /// Bytes, in whole pages. The first and the last page may hold bytes that the view does not cover.
    pub(crate) len: usize,
}

impl Layout {
    /// Returns the number of bytes that are mapped.
    pub(crate) fn mapped(&self) -> usize {
        self.maps.iter().map(|map| map.covers.len()).sum()
    }
}

/// Neighbouring spans that are adjacent in the arena too.
struct Run {
    position: usize,
    offset: usize,
    len: usize,
}

/// Lays out a view of these spans.
pub(crate) fn plan(spans: impl Iterator<Item = Span>, bounds: Bounds) -> Plan {
    let (runs, total) = runs(spans);
    if let [Run { position: 0, offset, len }] = runs[..] {
        if len == total {
            return Plan::Borrow { offset };
        }
    }
    let Some(lead) = best_lead(&runs, total, bounds) else { return Plan::Copy };
    let mut maps: Vec<Map> = runs.iter().filter_map(|run| map(run, lead, total, bounds)).collect();
    keep_largest(&mut maps, bounds.max_maps);
    if maps.is_empty() {
        return Plan::Copy;
    }
    let copies = gaps(&maps, total);
    Plan::Map(Layout { lead, maps, copies })
}

/// Joins spans to runs; also returns the length of all spans.
fn runs(spans: impl Iterator<Item = Span>) -> (Vec<Run>, usize) {
    let mut runs: Vec<Run> = Vec::new();
    let mut position = 0;
    for Span { offset, len } in spans {
        if let Some(offset) = offset {
            match runs.last_mut() {
                Some(run) if run.position + run.len == position && run.offset + run.len == offset => {
                    run.len += len;
                }
                _ => runs.push(Run { position, offset, len }),
            }
        }
        position += len;
    }
    (runs, position)
}

/// Returns the lead with which the most bytes can be mapped.
fn best_lead(runs: &[Run], total: usize, bounds: Bounds) -> Option<usize> {
    let mut mappable = BTreeMap::<usize, usize>::new();
    for run in runs {
        let lead = lead_of(run, bounds.page);
        if let Some(map) = map(run, lead, total, bounds) {
            *mappable.entry(lead).or_default() += map.covers.len();
        }
    }
    mappable.into_iter().max_by_key(|&(_, bytes)| bytes).map(|(lead, _)| lead)
}

/// Returns the only lead with which this run can be mapped.
fn lead_of(run: &Run, page: usize) -> usize {
    run.offset.wrapping_sub(run.position) & (page - 1)
}

/// Returns the pages of `run` that can be mapped with this lead, if they are long enough. At the view's two ends a page
/// may hold more than the run, because the view's slice does not reach there.
fn map(run: &Run, lead: usize, total: usize, bounds: Bounds) -> Option<Map> {
    let page = bounds.page;
    let end = run.position + run.len;
    let from = if run.position == 0 { 0 } else { (run.position + lead).next_multiple_of(page) - lead };
    let to = if end == total { end } else { ((end + lead) / page * page).saturating_sub(lead) };
    if lead_of(run, page) != lead || to.saturating_sub(from) < bounds.min_map.max(1) {
        return None;
    }
    let at = (from + lead) / page * page;
    Some(Map {
        covers: from..to,
        at,
        offset: run.offset + (from - run.position) - (from + lead - at),
        len: (to + lead).next_multiple_of(page) - at,
    })
}

fn keep_largest(maps: &mut Vec<Map>, most: usize) {
    if maps.len() > most {
        maps.sort_by_key(|map| std::cmp::Reverse(map.covers.len()));
        maps.truncate(most);
        maps.sort_by_key(|map| map.at);
    }
}

/// Returns the positions between the maps.
fn gaps(maps: &[Map], total: usize) -> Vec<Range<usize>> {
    let starts = std::iter::once(0).chain(maps.iter().map(|map| map.covers.end));
    let ends = maps.iter().map(|map| map.covers.start).chain(std::iter::once(total));
    starts.zip(ends).map(|(start, end)| start..end).filter(|gap| !gap.is_empty()).collect()
}
