//! What must hold of every plan. Shared by the property tests and the fuzzer.

use std::ops::Range;

use super::plan::{Bounds, Layout, Plan, Span, plan};

/// Where a span lies, roughly, and its length.
pub(crate) type Rough = (u8, u16, u8);

/// Spans in which neighbours often touch, and often lie at the start of a page.
pub(crate) fn spans(rough: &[Rough], page: usize) -> Vec<Span> {
    let mut end = 0;
    let mut spans = Vec::new();
    for &(kind, place, len) in rough {
        let (place, len) = (usize::from(place), 1 + usize::from(len));
        let place = match kind % 8 {
            0..4 => Some(end),
            4 => Some(place / page * page),
            5 => Some(end.next_multiple_of(page)),
            6 => Some(place),
            _ => None,
        };
        let len = if kind & 8 == 0 { len } else { len * page };
        end = place.unwrap_or(end) + len;
        spans.push(Span { place, len });
    }
    spans
}

/// Makes a plan of these spans and checks all that can be known of it.
pub(crate) fn check(spans: &[Span], bounds: Bounds) {
    let total = spans.iter().map(|span| span.len).sum();
    let runs = runs(spans);
    let adjacent = runs.first().filter(|(positions, _)| *positions == (0..total)).map(|(_, place)| *place);
    let best = (0..bounds.page).map(|lead| mappable(&runs, lead, total, bounds)).max().unwrap_or(0);
    match plan(spans.iter().copied(), bounds) {
        Plan::Borrow { place } => assert_eq!(Some(place), adjacent),
        Plan::Copy => assert!(adjacent.is_none() && (best == 0 || bounds.most_maps == 0)),
        Plan::Map(layout) => {
            assert!(adjacent.is_none());
            check_layout(&layout, &runs, total, bounds);
            assert!(layout.mapped() <= best);
            assert!(
                layout.mapped() == best || runs.len() > bounds.most_maps,
                "{} of {best}",
                layout.mapped()
            );
        }
    }
}

fn check_layout(layout: &Layout, runs: &[(Range<usize>, usize)], total: usize, bounds: Bounds) {
    let page = bounds.page;
    assert!(layout.lead < page && layout.maps.len() <= bounds.most_maps);
    let mut covered: Vec<_> = layout.maps.iter().map(|map| &map.covers).chain(&layout.copies).collect();
    covered.sort_by_key(|range| range.start);
    let end = covered.iter().fold(0, |end, range| {
        assert!(range.start == end && range.end > end, "{range:?} does not follow {end}");
        range.end
    });
    assert_eq!(end, total);
    for map in &layout.maps {
        assert!(map.at % page == 0 && map.place % page == 0 && map.len % page == 0);
        assert!(map.covers.len() >= bounds.least_map);
        let pages = map.at..map.at + map.len;
        // What it covers is in its pages, and comes from where the rope has it.
        assert!(pages.start <= map.covers.start + layout.lead && map.covers.end + layout.lead <= pages.end);
        assert!(map.covers.len() + 2 * page > map.len);
        let (positions, place) =
            runs.iter().find(|(positions, _)| positions.contains(&map.covers.start)).expect("in a run");
        assert!(map.covers.end <= positions.end);
        let place_in_map = map.place + (map.covers.start + layout.lead - pages.start);
        assert_eq!(place + (map.covers.start - positions.start), place_in_map);
        // Nothing else is in its pages: a copy there would be written to the arena, or be lost.
        let others = covered.iter().filter(|range| **range != &map.covers);
        assert!(others.into_iter().all(|range| {
            range.end + layout.lead <= pages.start || range.start + layout.lead >= pages.end
        }));
    }
}

/// Positions whose bytes are neighbours in the arena, and where they lie.
fn runs(spans: &[Span]) -> Vec<(Range<usize>, usize)> {
    let mut runs: Vec<(Range<usize>, usize)> = Vec::new();
    let mut position = 0;
    for span in spans {
        let end = position + span.len;
        match (span.place, runs.last_mut()) {
            (Some(place), Some((before, start)))
                if before.end == position && *start + before.len() == place =>
            {
                before.end = end;
            }
            (Some(place), _) => runs.push((position..end, place)),
            (None, _) => {}
        }
        position = end;
    }
    runs
}

/// How many bytes can be mapped with this lead, found out page by page.
fn mappable(runs: &[(Range<usize>, usize)], lead: usize, total: usize, bounds: Bounds) -> usize {
    let page = bounds.page;
    let of_run = |(positions, place): &(Range<usize>, usize)| {
        if (positions.start + lead) % page != place % page {
            return 0;
        }
        let first = (positions.start + lead) / page;
        let last = (positions.end + lead).div_ceil(page);
        let bytes: usize = (first..last)
            .map(|at| (at * page).saturating_sub(lead)..((at + 1) * page - lead).min(total))
            .filter(|bytes| positions.start <= bytes.start && bytes.end <= positions.end)
            .map(|bytes| bytes.len())
            .sum();
        if bytes >= bounds.least_map { bytes } else { 0 }
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
            least_map in 1..200usize,
            most_maps in 0..20usize,
        ) {
            check(&spans(&rough, page), Bounds { page, least_map, most_maps });
        }

        #[test]
        fn a_header_in_front_costs_at_most_two_pages(header in 1..64usize, pages in 10..1000usize, offset in 0..64usize) {
            let page = 64;
            let body = Span { place: Some(7 * page + offset), len: pages * page };
            let bounds = Bounds { page, least_map: page, most_maps: 10 };
            let spans = [Span { place: None, len: header }, body];
            check(&spans, bounds);
            let Plan::Map(layout) = plan(spans.into_iter(), bounds) else { panic!("nothing is mapped") };
            prop_assert!(layout.copies.iter().map(ExactSizeIterator::len).sum::<usize>() <= 2 * page);
        }
    }
}
