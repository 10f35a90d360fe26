//! Whether a peer makes progress with what it owes.

use std::time::{Duration, Instant};

/// Fewest bytes that must move in each period.
const PROGRESS: usize = 64 << 10;

/// Counts the bytes moved since the current period began.
pub(crate) struct Watch {
    moved: usize,
    since: Instant,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch { moved: 0, since: Instant::now() }
    }
}

impl Watch {
    pub(crate) fn note(&mut self, moved: usize) {
        self.moved += moved;
    }

    /// Something was finished: a new period begins.
    pub(crate) fn restart(&mut self) {
        *self = Watch::default();
    }

    /// Whether the peer owes something and fewer than [`PROGRESS`] bytes have moved for `idle`.
    pub(crate) fn is_overdue(&mut self, owes: bool, now: Instant, idle: Duration) -> bool {
        if !owes || self.moved >= PROGRESS {
            *self = Watch { moved: 0, since: now };
        }
        now.saturating_duration_since(self.since) >= idle
    }
}
