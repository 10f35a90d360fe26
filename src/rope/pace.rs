//! Adaptive read and send sizes. Pure.
//!
//! A read that asks for too little costs more calls; one that asks for too much takes pages that stay empty.

use std::num::NonZero;

/// Bytes in a first read before any payload is known; after a full read, the next one asks for no less.
const DEFAULT_READ: u32 = 64 << 10;

/// Most bytes in a first read, whatever the last payload was.
const MAX_FIRST_READ: u32 = 256 << 10;

/// Most bytes in a read. Larger ones save few calls and take more pages that may stay empty.
pub(crate) const MAX_READ: u32 = 1 << 20;

/// Bytes offered in the first send: more than most socket buffers accept at once.
const FIRST_SEND: u32 = 1 << 20;

/// Most bytes offered in a send. Bytes that the kernel does not accept cost their iovecs only.
pub(crate) const MAX_SEND: u32 = 1 << 30;

/// An adaptive size: doubles after a full call, halves after two in a row that moved at most half of it.
///
/// One word, since each frame that is taken off a rope gets a copy: twice the bytes, and 1 if the last call was short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace(NonZero<u32>);

impl Pace {
    pub(crate) const SENDS: Pace = Pace::new(FIRST_SEND, false);

    /// Returns a size of at most `MAX_SEND` bytes.
    #[inline]
    const fn new(bytes: u32, short: bool) -> Pace {
        match NonZero::new(bytes << 1 | short as u32) {
            Some(both) => Pace(both),
            None => Pace(NonZero::<u32>::MIN),
        }
    }

    /// Returns a read size that starts at `min`: a short first segment is copied into the next tail.
    pub(crate) fn careful(min: usize) -> Pace {
        Pace::new(to_u32(min), false)
    }

    /// Returns a read size that starts at what [`first_read`] returned, or at the default if that is 0.
    #[inline]
    pub(crate) fn reads(first: u32) -> Pace {
        Pace::new(if first == 0 { DEFAULT_READ } else { first }, false)
    }

    /// Asks for no less than `bytes`, if it may ask for so many.
    pub(crate) fn at_least(&mut self, bytes: usize) {
        let bytes = to_u32(bytes).min(MAX_READ);
        if bytes > self.size() {
            *self = Pace::new(bytes, self.is_short());
        }
    }

    #[inline]
    pub(crate) fn bytes(self) -> usize {
        self.size() as usize
    }

    #[inline]
    fn size(self) -> u32 {
        self.0.get() >> 1
    }

    #[inline]
    fn is_short(self) -> bool {
        self.0.get() & 1 == 1
    }

    /// Notes that `moved` of `offered` bytes were moved, and stays between `min` and `max`. A call that was offered
    /// less than this size, because there was no more, says nothing if it moved all.
    #[inline]
    pub(crate) fn note(&mut self, offered: usize, moved: usize, (min, max): (usize, u32)) {
        let size = self.size();
        if moved >= self.bytes() {
            *self = Pace::new((size * 2).clamp(DEFAULT_READ, max), false);
        } else if moved < offered && moved > self.bytes() / 2 {
            // Half as much would take two calls.
            *self = Pace::new(size, false);
        } else if moved < offered && self.is_short() {
            // Two short calls in a row.
            *self = Pace::new((size / 2).max(to_u32(min)), false);
        } else if moved < offered {
            *self = Pace::new(size, true);
        }
    }
}

/// Returns the size for the first read of the next payload, after one that brought `brought` bytes. A `full` one may
/// have left more in the socket.
#[inline]
pub(crate) fn first_read(brought: usize, full: bool, min: usize) -> u32 {
    match u32::try_from(brought << u32::from(full)) {
        Ok(small) if small < to_u32(min) => to_u32(min),
        Ok(brought) if brought < MAX_FIRST_READ => brought.next_power_of_two().max(DEFAULT_READ),
        _ => MAX_FIRST_READ,
    }
}

fn to_u32(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).min(MAX_SEND)
}
