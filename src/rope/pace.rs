//! How many bytes to ask for, or to offer, in the next call. Pure.

/// Fewest bytes per call.
const LEAST: u32 = 4 << 10;

/// Bytes in the first call.
const FIRST: u32 = 64 << 10;

/// Most bytes per call. A page of the pool is not touched before it is filled, so asking for much costs
/// nothing if little comes; see `docs/design.md` for where the gain ends.
const MOST: u32 = 1 << 20;

/// Doubles after a call that moved all it might have, halves after two in a row that did not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    bytes: u32,
    short: bool,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { bytes: FIRST, short: false }
    }
}

impl Pace {
    pub(crate) fn bytes(self) -> usize {
        self.bytes as usize
    }

    /// Notes that `moved` of `offered` bytes were moved. A call that was offered less than this pace,
    /// because there was no more, says nothing if it moved all.
    pub(crate) fn note(&mut self, offered: usize, moved: usize) {
        if moved >= self.bytes() {
            self.bytes = (self.bytes * 2).min(MOST);
            self.short = false;
        } else if moved < offered && self.short {
            // Two short calls in a row.
            self.bytes = (self.bytes / 2).max(LEAST);
            self.short = false;
        } else if moved < offered {
            self.short = true;
        }
    }
}
