//! The plan of a view, for any spans.
#![no_main]

#[path = "../../src/view/check.rs"]
mod check;
#[path = "../../src/view/plan.rs"]
mod plan;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    page_bits: u8,
    min_map: u8,
    max_maps: u8,
    spans: Vec<check::Rough>,
}

fuzz_target!(|input: Input| {
    let page = 8 << (input.page_bits % 4);
    let bounds =
        plan::Bounds { page, min_map: 1 + usize::from(input.min_map), max_maps: input.max_maps.into() };
    check::check(&check::spans(&input.spans, page), bounds);
});
