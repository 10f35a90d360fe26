//! Idle pages: what is given back to the system, and when.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{Core, State, pages_of};
use crate::sys::memory;

/// Bytes, and runs, that are given back to the system at once: well below a millisecond.
const SLICE_BYTES: usize = 2 << 20;
const SLICE_RUNS: usize = 64;

impl Core {
    /// Begins a new epoch if the last one has ended.
    pub(super) fn tick(&self, state: &mut State, now: u64) {
        if state.decay.has_ended(now) {
            self.flush_all(state);
            state.decay.begin_epoch(now, state.runs.resident_free(), state.used());
        }
    }

    pub(super) fn due(&self, state: &State) -> u32 {
        if self.arena.keeps_memory() { 0 } else { state.decay.due(state.runs.resident_free()) }
    }

    /// Gives back a slice of the pages that were idle for too long; returns how many bytes.
    pub(in crate::pool) fn decay(&self) -> io::Result<u64> {
        self.check_process()?;
        let due = {
            let mut state = self.state();
            self.tick(&mut state, memory::now());
            self.due(&state)
        };
        self.give_back_slice(due)
    }

    /// How long until [`decay`](Core::decay) should be called again; `None` while no page is idle.
    pub(in crate::pool) fn decay_timeout(&self) -> Option<Duration> {
        if self.arena.is_inherited() || self.arena.keeps_memory() {
            return None;
        }
        let (state, now) = (self.state(), memory::now());
        let cached = self.cached();
        if state.decay.has_ended(now) && cached > 0 {
            return Some(Duration::ZERO);
        }
        state.decay.timeout(now, state.runs.resident_free() + cached)
    }

    /// Gives all idle pages back; returns how many bytes. Linear in the arena's pages and in the runs that go.
    pub(in crate::pool) fn trim(&self) -> io::Result<u64> {
        self.check_process()?;
        if let Some(overflow) = &self.overflow {
            overflow.core().trim()?;
        }
        if let Some(spill) = &self.spill {
            spill.settle();
        }
        self.give_back_all()
    }

    /// Gives the pages back that are idle now.
    pub(super) fn give_back_all(&self) -> io::Result<u64> {
        let idle = {
            let mut state = self.state();
            self.flush_all(&mut state);
            state.runs.resident_free()
        };
        self.give_back(idle, usize::MAX)
    }

    /// Gives back so many of the pages that are due, at most a slice.
    pub(super) fn give_back_slice(&self, due: u32) -> io::Result<u64> {
        let slice = due.min(pages_of(SLICE_BYTES as u64, self.arena.page_size() as u64));
        self.give_back(slice, SLICE_RUNS)
    }

    /// Gives back up to `pages` idle pages, in up to so many `runs`; returns how many bytes.
    pub(super) fn give_back(&self, pages: u32, runs: usize) -> io::Result<u64> {
        let mut left = pages;
        for _ in 0..runs {
            let Some(pages) = self.give_back_run(left)? else { break };
            left -= pages;
            self.spill.iter().for_each(|spill| spill.withdraw(pages));
        }
        Ok(self.bytes(pages - left))
    }

    /// Gives back the highest run of up to `max` idle pages; `None` if there is none.
    fn give_back_run(&self, max: u32) -> io::Result<Option<u32>> {
        let run = {
            let mut state = self.state();
            let Some(run) = state.runs.take_highest_resident(max) else { return Ok(None) };
            // Allocated while the kernel works, so that no rope fills them; not counted as such.
            state.decommitting += run.len;
            run
        };
        let done = self.arena.decommit(run);
        self.change(|state| {
            state.decommitting -= run.len;
            if done.is_ok() {
                state.runs.clear_resident(run);
                state.decay.given_back(run.len);
            }
            state.runs.free(run);
        });
        done.map(|()| Some(run.len))
    }

    /// Starts the thread that gives idle pages back.
    pub(super) fn start_background(self: &Arc<Self>) {
        let core = Arc::downgrade(self);
        let step = move |pressed| {
            let core = core.upgrade()?;
            core.background.as_ref()?.step(pressed, |all| {
                // What the kernel does not take back stays usable, and is asked for again in the next epoch.
                let _ = if all { core.trim() } else { core.decay() };
                core.decay_timeout()
            })
        };
        if let Some(background) = &self.background {
            background.start(step);
        }
    }
}
