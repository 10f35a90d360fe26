//! How a view is laid out. Pure: no I/O, no pointers.
//!
//! A page can be given a second address, a byte cannot: a run of the arena is mapped only where its
//! place in the arena and its position in the view have the same remainder by the page size. The view
//! may start anywhere in its first page, and that *lead* decides for which runs they have:
//!
//! ```text
//! rope      │header 40 B│ run of the arena, page-aligned                    │
//! view    ┌─┴───────────┼───────────────────────────────────────────────────┤
//!         │lead          │ mapped
//!         └ page boundary└ page boundary
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

/// A segment as the plan sees it: how long, and where in the arena if it lies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) place: Option<usize>,
    pub(crate) len: usize,
}

/// What the plan must keep to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Bytes per page, a power of two.
    pub(crate) page: usize,
    /// Fewest bytes that are worth a map.
    pub(crate) least_map: usize,
    /// Most maps.
    pub(crate) most_maps: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// The bytes lie side by side in the arena, from this place on.
    Borrow { place: usize },
    /// No page can be mapped, or none is worth it.
    Copy,
    /// Some pages are mapped, the rest is copied.
    Map(Layout),
}

/// Where everything goes, in a range of whole pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of the range before the view; less than a page.
    pub(crate) lead: usize,
    /// In ascending order.
    pub(crate) maps: Vec<Map>,
    /// Positions that are copied, in ascending order: all that no map covers.
    pub(crate) copies: Vec<Range<usize>>,
}

/// Whole pages of the arena and their second place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Map {
    /// Positions of the view that these pages hold.
    pub(crate) covers: Range<usize>,
    /// Where in the range they start, in bytes: a page boundary.
    pub(crate) at: usize,
    /// Where in the arena they start: a page boundary.
    pub(crate) place: usize,
    /// Bytes, in whole pages. The first and the last page may hold more than they cover.
    pub(crate) len: usize,
}

impl Layout {
    /// Bytes that are mapped.
    pub(crate) fn mapped(&self) -> usize {
        self.maps.iter().map(|map| map.covers.len()).sum()
    }
}

/// Neighbouring spans that are neighbours in the arena too.
struct Run {
    position: usize,
    place: usize,
    len: usize,
}

/// Lays out a view of these spans.
pub(crate) fn plan(spans: impl Iterator<Item = Span>, bounds: Bounds) -> Plan {
    let (runs, total) = runs(spans);
    if let [Run { position: 0, place, len }] = runs[..] {
        if len == total {
            return Plan::Borrow { place };
        }
    }
    let Some(lead) = best_lead(&runs, total, bounds) else { return Plan::Copy };
    let mut maps: Vec<Map> = runs.iter().filter_map(|run| map(run, lead, total, bounds)).collect();
    keep_largest(&mut maps, bounds.most_maps);
    if maps.is_empty() {
        return Plan::Copy;
    }
    let copies = gaps(&maps, total);
    Plan::Map(Layout { lead, maps, copies })
}

/// The runs of the arena, and the length of everything.
fn runs(spans: impl Iterator<Item = Span>) -> (Vec<Run>, usize) {
    let mut runs: Vec<Run> = Vec::new();
    let mut position = 0;
    for Span { place, len } in spans {
        if let Some(place) = place {
            match runs.last_mut() {
                Some(run) if run.position + run.len == position && run.place + run.len == place => {
                    run.len += len;
                }
                _ => runs.push(Run { position, place, len }),
            }
        }
        position += len;
    }
    (runs, position)
}

/// The lead with which the most bytes can be mapped.
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

/// The lead with which this run can be mapped.
fn lead_of(run: &Run, page: usize) -> usize {
    run.place.wrapping_sub(run.position) & (page - 1)
}

/// The pages of `run` that can be mapped with this lead, if they are worth it. At the view's two ends a
/// page may hold more than the run.
fn map(run: &Run, lead: usize, total: usize, bounds: Bounds) -> Option<Map> {
    let page = bounds.page;
    let end = run.position + run.len;
    let from = if run.position == 0 { 0 } else { (run.position + lead).next_multiple_of(page) - lead };
    let to = if end == total { end } else { ((end + lead) / page * page).saturating_sub(lead) };
    if lead_of(run, page) != lead || to.saturating_sub(from) < bounds.least_map.max(1) {
        return None;
    }
    let at = (from + lead) / page * page;
    Some(Map {
        covers: from..to,
        at,
        place: run.place + (from - run.position) - (from + lead - at),
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

/// What lies between the maps.
fn gaps(maps: &[Map], total: usize) -> Vec<Range<usize>> {
    let starts = std::iter::once(0).chain(maps.iter().map(|map| map.covers.end));
    let ends = maps.iter().map(|map| map.covers.start).chain(std::iter::once(total));
    starts.zip(ends).map(|(start, end)| start..end).filter(|gap| !gap.is_empty()).collect()
}
