//! How many bytes to ask for, or to offer, in the next call. Pure.

/// Bytes in a first read of which nothing is known, and after one that brought all of a lesser number.
const DEFAULT_READ: u32 = 64 << 10;

/// Most bytes in a first read, however large the last payload was.
const MAX_FIRST_READ: u32 = 256 << 10;

/// Most bytes per read, as a power of two: a larger one saves little, and takes more pages that may stay empty.
const MAX_READ: u8 = 20;

/// Bytes offered in the first send: more than a socket takes at once, as a rule.
const FIRST_SEND: u32 = 1 << 20;

/// Most bytes offered per send, as a power of two. What the kernel cannot take costs the iovecs that name it, no more.
const MAX_SEND: u8 = 30;

/// Doubles after a call that moved all it might have, halves after two in a row that moved at most half.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    bytes: u32,
    /// A power of two.
    most: u8,
    short: bool,
}

impl Pace {
    pub(crate) const SENDS: Pace = Pace { bytes: FIRST_SEND, most: MAX_SEND, short: false };

    /// Reads that begin with the least: whatever comes first is moved to where the rest goes.
    pub(crate) fn careful(min: usize) -> Pace {
        Pace { bytes: to_u32(min), most: MAX_READ, short: false }
    }

    /// Reads of which the first one asks for as much as [`first_read`] said, or for the usual if that is 0.
    #[inline]
    pub(crate) fn reads(first: u32) -> Pace {
        Pace { bytes: if first == 0 { DEFAULT_READ } else { first }, most: MAX_READ, short: false }
    }

    /// Asks for no less than `bytes`, if it may ask for so many.
    pub(crate) fn at_least(&mut self, bytes: usize) {
        self.bytes = self.bytes.max(to_u32(bytes).min(1 << self.most));
    }

    #[inline]
    pub(crate) fn bytes(self) -> usize {
        self.bytes as usize
    }

    /// Notes that `moved` of `offered` bytes were moved. A call that was offered less than this pace,
    /// because there was no more, says nothing if it moved all.
    #[inline]
    pub(crate) fn note(&mut self, offered: usize, moved: usize, min: usize) {
        if moved >= self.bytes() {
            self.bytes = (self.bytes * 2).clamp(DEFAULT_READ, 1 << self.most);
            self.short = false;
        } else if moved < offered && moved > self.bytes() / 2 {
            // Half as much would take two calls.
            self.short = false;
        } else if moved < offered && self.short {
            // Two short calls in a row.
            self.bytes = (self.bytes / 2).max(to_u32(min));
            self.short = false;
        } else if moved < offered {
            self.short = true;
        }
    }
}

/// What the first read of the next payload had better ask for, when that of the last one brought so many
/// bytes, and might have brought more if it was `full`.
#[inline]
pub(crate) fn first_read(brought: usize, full: bool, min: usize) -> u32 {
    match u32::try_from(brought << u32::from(full)) {
        Ok(small) if small < to_u32(min) => to_u32(min),
        Ok(brought) if brought < MAX_FIRST_READ => brought.next_power_of_two().max(DEFAULT_READ),
        _ => MAX_FIRST_READ,
    }
}

fn to_u32(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
