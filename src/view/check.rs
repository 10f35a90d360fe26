//! Properties of every plan, shared by the property tests and the fuzzer.

use std::ops::Range;

use super::plan::{Bounds, Layout, Plan, Span, plan};

/// A span as the tests generate it: a kind, an offset and a length.
pub(crate) type Rough = (u8, u16, u8);

/// Returns spans that are often adjacent and often start at a page boundary.
pub(crate) fn spans(rough: &[Rough], page: usize) -> Vec<Span> {
    let mut end = 0;
    let mut spans = Vec::new();
    for &(kind, offset, len) in rough {
        let (offset, len) = (usize::from(offset), 1 + usize::from(len));
        let offset = match kind % 8 {
            0..4 => Some(end),
            4 => Some(offset / page * page),
            5 => Some(end.next_multiple_of(page)),
            6 => Some(offset),
            _ => None,
        };
        let len = if kind & 8 == 0 { len } else { len * page };
        end = offset.unwrap_or(end) + len;
        spans.push(Span { offset, len });
    }
    spans
}

/// Plans these spans and checks every property of the plan, the optimum included.
pub(crate) fn check(spans: &[Span], bounds: Bounds) {
    let total = spans.iter().map(|span| span.len).sum();
    let runs = runs(spans);
    let adjacent = runs.first().filter(|(positions, _)| *positions == (0..total)).map(|(_, offset)| *offset);
    let best = (0..bounds.page).map(|lead| mappable(&runs, lead, total, bounds)).max().unwrap_or(0);
    match plan(spans.iter().copied(), bounds) {
        Plan::Borrow { offset } => assert_eq!(Some(offset), adjacent),
        Plan::Copy => assert!(adjacent.is_none() && (best == 0 || bounds.max_maps == 0)),
        Plan::Map(layout) => {
            assert!(adjacent.is_none());
            check_layout(&layout, &runs, total, bounds);
            assert!(layout.mapped() <= best);
            assert!(layout.mapped() == best || runs.len() > bounds.max_maps, "{} of {best}", layout.mapped());
        }
    }
}

fn check_layout(layout: &Layout, runs: &[(Range<usize>, usize)], total: usize, bounds: Bounds) {
    let page = bounds.page;
    assert!(layout.lead < page && layout.maps.len() <= bounds.max_maps);
    let mut covered: Vec<_> = layout.maps.iter().map(|map| &map.covers).chain(&layout.copies).collect();
    covered.sort_by_key(|range| range.start);
    let end = covered.iter().fold(0, |end, range| {
        assert!(range.start == end && range.end > end, "{range:?} does not follow {end}");
        range.end
    });
    assert_eq!(end, total);
    for map in &layout.maps {
        assert!(map.at % page == 0 && map.offset % page == 0 && map.len % page == 0);
        assert!(map.covers.len() >= bounds.min_map);
        let pages = map.at..map.at + map.len;
        // The covered positions lie in the map's pages, at the offset that the rope has them at.
        assert!(pages.start <= map.covers.start + layout.lead && map.covers.end + layout.lead <= pages.end);
        assert!(map.covers.len() + 2 * page > map.len);
        let (positions, offset) =
            runs.iter().find(|(positions, _)| positions.contains(&map.covers.start)).expect("in a run");
        assert!(map.covers.end <= positions.end);
        let offset_in_map = map.offset + (map.covers.start + layout.lead - pages.start);
        assert_eq!(offset + (map.covers.start - positions.start), offset_in_map);
        // No other range lies in these pages: a copy there would be written to the arena.
        let others = covered.iter().filter(|range| **range != &map.covers);
        assert!(others.into_iter().all(|range| {
            range.end + layout.lead <= pages.start || range.start + layout.lead >= pages.end
        }));
    }
}

/// Returns positions whose bytes are adjacent in the arena, with their offset.
fn runs(spans: &[Span]) -> Vec<(Range<usize>, usize)> {
    let mut runs: Vec<(Range<usize>, usize)> = Vec::new();
    let mut position = 0;
    for span in spans {
        let end = position + span.len;
        match (span.offset, runs.last_mut()) {
            (Some(offset), Some((before, start)))
                if before.end == position && *start + before.len() == offset =>
            {
                before.end = end;
            }
            (Some(offset), _) => runs.push((position..end, offset)),
            (None, _) => {}
        }
        position = end;
    }
    runs
}

/// Returns how many bytes can be mapped with this lead, by looking at every page.
fn mappable(runs: &[(Range<usize>, usize)], lead: usize, total: usize, bounds: Bounds) -> usize {
    let page = bounds.page;
    let of_run = |(positions, offset): &(Range<usize>, usize)| {
        if (positions.start + lead) % page != offset % page {
            return 0;
        }
        let first = (positions.start + lead) / page;
        let last = (positions.end + lead).div_ceil(page);
        let bytes: usize = (first..last)
            .map(|at| (at * page).saturating_sub(lead)..((at + 1) * page - lead).min(total))
            .filter(|bytes| positions.start <= bytes.start && bytes.end <= positions.end)
            .map(|bytes| bytes.len())
            .sum();
        if bytes >= bounds.min_map { bytes } else { 0 }
    };
    runs.iter().map(of_run).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_plan_is_right(
            rough in prop::collection::vec(any::<Rough>(), 0..40),
            page in (3..7u32).prop_map(|bits| 1 << bits),
            min_map in 1..200usize,
            max_maps in 0..20usize,
        ) {
            check(&spans(&rough, page), Bounds { page, min_map, max_maps });
        }

        #[test]
        fn a_header_in_front_costs_at_most_two_pages(header in 1..64usize, pages in 10..1000usize, offset in 0..64usize) {
            let page = 64;
            let body = Span { offset: Some(7 * page + offset), len: pages * page };
            let bounds = Bounds { page, min_map: page, max_maps: 10 };
            let spans = [Span { offset: None, len: header }, body];
            check(&spans, bounds);
            let Plan::Map(layout) = plan(spans.into_iter(), bounds) else { panic!("nothing is mapped") };
            prop_assert!(layout.copies.iter().map(ExactSizeIterator::len).sum::<usize>() <= 2 * page);
        }
    }
}
