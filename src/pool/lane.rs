//! Where in the arena a thread looks for pages first.
//!
//! ```text
//! pages   0        stride     2 * stride   3 * stride
//!         │ lane 0   │ lane 1     │ lane 2     │ …
//! ```
//!
//! The ropes of one thread grow one after the other, those of different threads into each other. So while a
//! pool is in use each thread starts new extents in a part of its own, and leaves it when that is full. The
//! lanes lie over what was ever used, so that recycled memory serves all of them.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::LocalKey;

use super::pages::{Pages, Taken};
use super::stash::LANES;

/// Fewest bytes of a lane, where the arena is large enough.
pub(super) const LEAST: usize = 4 << 20;

/// Takes up to `want` pages, in this thread's lane of at least `least` if others use the pool too.
pub(super) fn take(pages: &mut Pages, want: u32, enough: u32, least: u32) -> Option<Taken> {
    // A rope that is alone may need all pages from the first on to be side by side.
    let beside = if pages.in_use() > 0 { pages.take_within(lane(pages, least), want, enough) } else { None };
    beside.or_else(|| pages.take(want, enough))
}

fn lane(pages: &Pages, least: u32) -> Range<u32> {
    let stride = (pages.top() / LANES).max(least.min(pages.total() / LANES));
    let start = number() * stride;
    start..start + stride
}

/// This thread's lane.
#[inline]
pub(super) fn number() -> u32 {
    // A constant, and nothing to drop: so it is read as any other memory is.
    thread_local!(static NUMBER: Cell<u32> = const { Cell::new(LANES) });
    let number = NUMBER.get();
    if number < LANES { number } else { next_number(&NUMBER) }
}

#[cold]
fn next_number(place: &'static LocalKey<Cell<u32>>) -> u32 {
    static THREADS: AtomicU32 = AtomicU32::new(0);
    place.set(THREADS.fetch_add(1, Ordering::Relaxed) % LANES);
    place.get()
}
