//! Where in the arena new extents begin.
//!
//! ```text
//! pages   0        stride     2 * stride   3 * stride
//!         │ lane 0   │ lane 1     │ lane 2     │ …         one thread's ropes begin in one of these
//!         ├────┬────┬────┬────┬ …
//!          room room room                                  and as far apart as there is room for each
//! ```
//!
//! Ropes that grow in turns would else grow into each other. The lanes lie over what was ever used, so that
//! recycled memory serves all of them.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::LocalKey;

use super::pages::{Pages, Taken};
use super::stash::LANES;

/// Warm runs below this many bytes are left for small extents: each run is one map in a view.
const ENOUGH: usize = 64 << 10;

/// Fewest bytes of a lane, where the arena is large enough.
const LEAST_LANE: usize = 4 << 20;

/// Fewest bytes of room for a rope, about what views copy rather than map if they have to. Little under test, so
/// that ropes are in each other's way.
const LEAST_ROOM: usize = if cfg!(any(test, fuzzing)) { 16 << 10 } else { 512 << 10 };

/// Most bytes of room: a rope of this size gets along with several extents.
const MOST_ROOM: usize = 32 << 20;

/// How many searches for room are left out after one that found none: with so many ropes about, the next ones would
/// look at as much in vain.
const HOPELESS: u32 = 64;

/// These sizes in pages.
pub(super) struct Places {
    enough: u32,
    least_lane: u32,
    least_room: u32,
    most_room: u32,
    /// How many searches for room to leave out.
    hopeless: u32,
}

impl Places {
    pub(super) fn new(page_size: usize) -> Places {
        let pages = |bytes: usize| u32::try_from(bytes.div_ceil(page_size)).unwrap_or(u32::MAX);
        Places {
            enough: pages(ENOUGH),
            least_lane: pages(LEAST_LANE),
            least_room: pages(LEAST_ROOM),
            most_room: pages(MOST_ROOM),
            hopeless: 0,
        }
    }

    /// How far apart small ropes begin.
    pub(super) fn least_room(&self) -> u32 {
        self.least_room
    }

    /// Takes up to `want` pages for a rope that holds `held` already: where it has room to double, if there is
    /// such a place.
    pub(super) fn take(&mut self, pages: &mut Pages, want: u32, held: u32) -> Option<Taken> {
        // A rope that is alone may need all pages from the first on to be side by side.
        if pages.in_use() == 0 {
            return pages.take(want, self.enough);
        }
        let start = self.lane(pages);
        let lane = start..start + self.stride(pages);
        let apart = self.take_apart(pages, want, held);
        apart.or_else(|| pages.take_within(lane, want, self.enough)).or_else(|| pages.take(want, self.enough))
    }

    /// Takes exactly `want` pages, side by side.
    pub(super) fn take_exact(&mut self, pages: &mut Pages, want: u32) -> Option<Taken> {
        self.take_apart(pages, want, 0).or_else(|| pages.take_exact(want))
    }

    /// Takes up to `want` pages from page `at` on, for the extent that ends there.
    pub(super) fn take_at(&self, pages: &mut Pages, at: u32, want: u32) -> Option<Taken> {
        pages.take_at(at, want, self.enough, self.least_room)
    }

    fn take_apart(&mut self, pages: &mut Pages, want: u32, held: u32) -> Option<Taken> {
        let room = held.min(self.most_room).next_power_of_two().max(self.least_room);
        if pages.in_use() == 0 || want > room / 2 {
            return None;
        }
        if self.hopeless > 0 {
            self.hopeless -= 1;
            return None;
        }
        let apart = pages.take_apart(self.lane(pages), room, want);
        self.hopeless = if apart.is_none() { HOPELESS } else { 0 };
        apart
    }

    /// The first page of this thread's lane.
    fn lane(&self, pages: &Pages) -> u32 {
        number() * self.stride(pages)
    }

    fn stride(&self, pages: &Pages) -> u32 {
        (pages.top() / LANES).max(self.least_lane.min(pages.total() / LANES))
    }
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
