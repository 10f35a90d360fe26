//! How many bytes to ask for, or to offer, in the next call. Pure.

/// Fewest bytes per call.
const LEAST: u32 = 4 << 10;

/// Bytes in the first read.
const FIRST_READ: u32 = 64 << 10;

/// Most bytes per read: a larger one saves little, and takes more pages that may stay empty.
const MOST_READ: u32 = 1 << 20;

/// Bytes offered in the first send: more than a socket takes at once, as a rule.
const FIRST_SEND: u32 = 1 << 20;

/// Most bytes offered per send. What the kernel cannot take costs the iovecs that name it, no more.
const MOST_SEND: u32 = 1 << 30;

/// Doubles after a call that moved all it might have, halves after two in a row that did not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    bytes: u32,
    most: u32,
    short: bool,
}

impl Pace {
    pub(crate) const READS: Pace = Pace { bytes: FIRST_READ, most: MOST_READ, short: false };
    pub(crate) const SENDS: Pace = Pace { bytes: FIRST_SEND, most: MOST_SEND, short: false };

    pub(crate) fn bytes(self) -> usize {
        self.bytes as usize
    }

    /// Notes that `moved` of `offered` bytes were moved. A call that was offered less than this pace,
    /// because there was no more, says nothing if it moved all.
    pub(crate) fn note(&mut self, offered: usize, moved: usize) {
        if moved >= self.bytes() {
            self.bytes = (self.bytes * 2).min(self.most);
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
