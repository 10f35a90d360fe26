//! When idle pages are given back to the system. Pure: no I/O, no clock of its own.
//!
//! ```text
//! free and resident   ▁▃▇▇▅▇▇▇▇▇▇▇▇▇▇▇│now
//!                      └── 16 epochs ──┘   the lowest level in them is due: those pages were idle all the time
//! ```
//!
//! As in jemalloc, the time that pages may stay idle is divided into epochs, and the work is done in bounded slices: by
//! calls that take the pool's lock anyway, by [`Pool::decay`](crate::Pool::decay), or by a thread.

use std::time::Duration;

/// Epochs in the time that pages may stay idle: it is kept to within a sixteenth.
const EPOCHS: usize = 16;

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub(super) type Nanos = u64;

pub(super) struct Decay {
    /// Length of an epoch, at least 1.
    epoch: Nanos,
    /// When the current epoch began.
    began: Nanos,
    /// Fewest free resident pages in each of the last epochs; the current one is at `current`.
    lows: [u32; EPOCHS],
    /// Pages in use when each of them began.
    used: [u32; EPOCHS],
    current: usize,
    /// Free resident pages that may stay.
    retain: u32,
}

impl Decay {
    pub(super) fn new(decay: Duration, retain: u32, now: Nanos) -> Decay {
        let decay = u64::try_from(decay.as_nanos()).unwrap_or(u64::MAX);
        let epoch = (decay / EPOCHS as u64).max(1);
        Decay { epoch, began: now, lows: [0; EPOCHS], used: [0; EPOCHS], current: 0, retain }
    }

    /// Notes how many pages are free and resident, after some were allocated.
    #[inline]
    pub(super) fn note(&mut self, idle: u32) {
        let low = &mut self.lows[self.current];
        *low = (*low).min(idle);
    }

    /// Returns whether an epoch has ended by `now`.
    #[inline]
    pub(super) fn has_ended(&self, now: Nanos) -> bool {
        now.saturating_sub(self.began) >= self.epoch
    }

    /// Begins the epoch that `now` is in, with so many pages idle and in use. O(1): at most [`EPOCHS`] are looked at.
    pub(super) fn begin_epoch(&mut self, now: Nanos, idle: u32, used: u32) {
        let ended = now.saturating_sub(self.began) / self.epoch;
        for _ in 0..ended.min(EPOCHS as u64) {
            self.current = (self.current + 1) % EPOCHS;
            (self.lows[self.current], self.used[self.current]) = (idle, used);
        }
        self.began = self.began.saturating_add(ended.saturating_mul(self.epoch));
    }

    /// Pages to give back, of those that are free and resident.
    pub(super) fn due(&self, idle: u32) -> u32 {
        let unused = self.lows.iter().copied().min().unwrap_or(0);
        unused.max(idle.saturating_sub(self.retain)).min(idle)
    }

    /// Fewest pages in use at the start of the last epochs, of which `used` are now: no more were in use all the time.
    pub(super) fn low(&self, used: u32) -> u32 {
        self.used.iter().copied().fold(used, u32::min)
    }

    /// Notes that pages were given back.
    pub(super) fn given_back(&mut self, pages: u32) {
        self.lows.iter_mut().for_each(|low| *low = low.saturating_sub(pages));
    }

    /// How long until [`due`](Decay::due) should be asked for again; `None` while nothing is idle.
    pub(super) fn timeout(&self, now: Nanos, idle: u32) -> Option<Duration> {
        if idle == 0 {
            return None;
        }
        let next = if self.due(idle) > 0 { now } else { self.began.saturating_add(self.epoch) };
        Some(Duration::from_nanos(next.saturating_sub(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Nanos = 10;

    fn decay(retain: u32) -> Decay {
        Decay::new(Duration::from_nanos(EPOCH * EPOCHS as u64), retain, 0)
    }

    fn due_at(decay: &mut Decay, now: Nanos, idle: u32) -> u32 {
        if decay.has_ended(now) {
            decay.begin_epoch(now, idle, 0);
        }
        decay.due(idle)
    }

    #[test]
    fn pages_are_due_once_they_were_idle_for_the_whole_time() {
        let mut decay = decay(u32::MAX);
        for now in (5..EPOCH * 16).step_by(7) {
            assert_eq!(due_at(&mut decay, now, 100), 0, "at {now}");
        }
        assert_eq!(due_at(&mut decay, EPOCH * 16 + 5, 100), 100);
        decay.given_back(40);
        assert_eq!(decay.due(60), 60);
    }

    #[test]
    fn a_long_silence_counts_as_one() {
        let mut decay = decay(u32::MAX);
        decay.note(0);
        assert_eq!(due_at(&mut decay, u64::MAX / 2, 100), 100);
        decay.note(30);
        assert_eq!(decay.due(100), 30, "what is used now and then stays");
    }

    #[test]
    fn use_keeps_pages_for_as_long_again() {
        let mut decay = decay(u32::MAX);
        for round in 1..100 {
            let now = round * 15 * EPOCH;
            assert_eq!(due_at(&mut decay, now, 100), 0);
            decay.note(0);
        }
    }

    #[test]
    fn what_exceeds_the_retained_size_is_due_at_once() {
        let decay = decay(10);
        assert_eq!((decay.due(30), decay.due(10)), (20, 0));
    }

    #[test]
    fn the_lowest_use_is_that_of_the_last_epochs() {
        let mut decay = decay(u32::MAX);
        assert_eq!(decay.low(50), 0, "for so long nothing was in use");
        for epoch in 1..=16 {
            decay.begin_epoch(epoch * EPOCH, 0, if epoch == 9 { 20 } else { 40 });
        }
        assert_eq!((decay.low(50), decay.low(10)), (20, 10));
        decay.begin_epoch(30 * EPOCH, 0, 30);
        assert_eq!(decay.low(50), 30, "a silence counts as many epochs");
    }

    #[test]
    fn the_timeout_is_none_while_nothing_is_idle() {
        let mut decay = decay(u32::MAX);
        assert_eq!(decay.timeout(3, 0), None);
        assert_eq!(decay.timeout(3, 1), Some(Duration::from_nanos(EPOCH - 3)));
        assert_eq!(due_at(&mut decay, EPOCH * 20, 1), 1);
        assert_eq!(decay.timeout(EPOCH * 20, 1), Some(Duration::ZERO));
    }

    #[test]
    fn any_duration_is_accepted() {
        let mut never = Decay::new(Duration::MAX, u32::MAX, 7);
        assert_eq!(due_at(&mut never, u64::MAX / 17, 1), 0);
        let mut at_once = Decay::new(Duration::ZERO, u32::MAX, 7);
        assert_eq!(due_at(&mut at_once, 7 + 16, 1), 1);
    }
}
