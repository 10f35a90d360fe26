//! Floor 0: the sizes that the crate is tuned by, in one value.
//!
//! Ropes and pools carry a reference to one, so that the tests run the same code with small sizes, where every seam
//! is met often, and with those that are shipped. `docs/design.md` has the measurement behind each.

/// Shortest `max_segment` of a small pool.
const MIN_SEGMENT: usize = 16 << 10;

/// A segment is at most this part of a pool's capacity, unless it is of [`MIN_SEGMENT`].
const CAPACITY_PART: u64 = 16;

/// Sizes in bytes, unless stated otherwise.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Longest run of bytes that is copied rather than given a page or an iovec of its own.
    pub(crate) inline_max: usize,
    /// Longest segment that is cut off a tail: what one byte that is kept alive can pin.
    pub(crate) max_segment: usize,
    /// Smallest growth slack: free pages behind a new extent.
    pub(crate) min_slack: usize,
    /// Largest growth slack.
    pub(crate) max_slack: usize,
    /// Fewest bytes that `BufMut` offers.
    pub(crate) min_chunk: usize,
    /// Most iovecs in one call.
    pub(crate) max_iovecs: usize,
    /// Shortest view of which anything is mapped.
    pub(crate) min_view: usize,
    /// Shortest run that is mapped in a view.
    pub(crate) min_map: usize,
    /// Shortest run that is moved to a view with its page table entries.
    pub(crate) min_move: usize,
}

impl Limits {
    /// The sizes of a release.
    pub(crate) const SHIPPED: &'static Limits = &Limits {
        inline_max: 4 << 10,
        max_segment: 2 << 20,
        min_slack: 512 << 10,
        max_slack: 32 << 20,
        min_chunk: 4 << 10,
        max_iovecs: crate::sys::iovec::MAX_IOVECS,
        min_view: 512 << 10,
        min_map: 16 << 10,
        min_move: 256 << 10,
    };

    /// The sizes of a release with shorter segments, from 16 KiB on, each twice as long as the one before.
    const SHORT_SEGMENTS: [Limits; 7] = {
        let mut limits = [const { Limits { max_segment: MIN_SEGMENT, ..*Limits::SHIPPED } }; 7];
        let mut index = 1;
        while index < limits.len() {
            limits[index].max_segment = MIN_SEGMENT << index;
            index += 1;
        }
        limits
    };

    /// Returns those of a pool with such a capacity: a segment, all of which one byte pins, is a sixteenth of it at most.
    pub(crate) fn for_capacity(bytes: u64) -> &'static Limits {
        const SHORT: &[Limits] = &Limits::SHORT_SEGMENTS;
        let fits = |limits: &Limits| limits.max_segment as u64 <= bytes / CAPACITY_PART;
        if fits(Limits::SHIPPED) {
            return Limits::SHIPPED;
        }
        SHORT.iter().rev().find(|limits| fits(limits)).unwrap_or(&SHORT[0])
    }

    /// Sizes with which a test meets every seam within a few pages.
    #[cfg(any(test, fuzzing))]
    pub(crate) const SMALL: &'static Limits = &Limits {
        inline_max: 16,
        max_segment: 16 << 10,
        min_slack: 16 << 10,
        max_slack: 64 << 10,
        min_chunk: 8,
        max_iovecs: 2,
        min_view: 4 << 10,
        min_map: 4 << 10,
        min_move: 8 << 10,
    };
}
