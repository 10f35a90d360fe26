//! Messages in a stream: a length of 8 bytes, big-endian, then as many bytes. Pure: no I/O.
//!
//! ```text
//!  ┌────────────────┬─────────────────────┬────────────────┬──────···
//!  │ length: u64 BE │ that many bytes     │ length: u64 BE │
//!  └────────────────┴─────────────────────┴────────────────┴──────···
//! ```

use std::error::Error;
use std::fmt;

use bytes::Buf;
use ropewalk::{Cursor, Rope};

/// Bytes of the length in front of each message.
pub(crate) const HEADER: usize = 8;

/// What a rope of received bytes begins with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Front {
    /// Bytes of whole messages, their lengths included.
    pub(crate) whole: usize,
    /// Number of whole messages.
    pub(crate) messages: usize,
    /// Bytes that the length or the message behind them still lacks, never 0; or why it is refused.
    pub(crate) lacks: Result<usize, TooLong>,
}

/// The length of a message is more than is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong {
    pub(crate) announced: u64,
    pub(crate) max: usize,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it announced a message of {} bytes, {} are allowed", self.announced, self.max)
    }
}

impl Error for TooLong {}

/// Looks at the messages at the front of `received`, each of at most `max` bytes. O(messages).
pub(crate) fn front(received: &Rope, max: usize) -> Front {
    let mut cursor = received.cursor();
    let (mut whole, mut messages) = (0, 0);
    loop {
        match pass(&mut cursor, max) {
            Ok(0) => (whole, messages) = (cursor.position(), messages + 1),
            lacks => return Front { whole, messages, lacks },
        }
    }
}

/// Returns how many bytes the message at the cursor lacks. If none, the cursor moves behind it.
fn pass(cursor: &mut Cursor<&Rope>, max: usize) -> Result<usize, TooLong> {
    if cursor.remaining() < HEADER {
        return Ok(HEADER - cursor.remaining());
    }
    let announced = cursor.get_u64();
    let len = usize::try_from(announced).ok().filter(|&len| len <= max);
    let len = len.ok_or(TooLong { announced, max })?;
    let lacks = len.saturating_sub(cursor.remaining());
    if lacks == 0 {
        cursor.advance(len);
    }
    Ok(lacks)
}
