//! Pages that go to a file: when they are written, and how they are freed.

use std::io;
use std::task::Waker;

use super::{Core, State};
use crate::event::event;
use crate::pool::refused::{AtCapacity, Full};
use crate::pool::runs::PageRun;
use crate::pool::spill::{Pages, Refusal, Spill};
use crate::sys::memory;

/// Most pages that have memory and no rope: one that a rope takes next, and one that a read brought nothing for.
const MAX_IDLE: u32 = 2;

impl Core {
    /// Asks a spill file for room to stage these pages.
    pub(super) fn admit(&self, run: PageRun) -> io::Result<()> {
        let Some(spill) = &self.spill else { return Ok(()) };
        let admitted = match spill.admit(run.len) {
            Err(Refusal::Staged(_)) if self.give_back_all()? > 0 => spill.admit(run.len),
            admitted => admitted,
        };
        admitted.map_err(|refusal| match refusal {
            Refusal::Failed(error) => error,
            Refusal::Staged(bytes) => AtCapacity {
                in_use: bytes,
                capacity: bytes,
                requested: self.bytes(run.len),
                what: Full::Staging,
            }
            .into(),
        })
    }

    /// Lets the thread of the spill file prepare the page behind an extent, for it to grow into.
    pub(super) fn prepare_behind(&self, run: PageRun) {
        if let Some(spill) = self.spill.as_ref().filter(|_| self.lacks_memory(&self.state(), run.end())) {
            spill.prepare(run.end());
        }
    }

    /// Returns whether no rope has the page, and it no memory.
    fn lacks_memory(&self, state: &State, page: u32) -> bool {
        let runs = &state.runs;
        runs.resident_free() < MAX_IDLE
            && !runs.is_allocated(page)
            && runs.resident_prefix(PageRun::new(page, 1)) == 0
    }

    /// Lets a spill file have pages, of which the first `len` bytes are full and never change again.
    pub(in crate::pool) fn write_out(&self, run: PageRun, len: usize) {
        if let Some(spill) = self.spill.as_ref().filter(|_| !self.arena.is_inherited()) {
            spill.write(run, len);
        }
    }

    /// Lets the thread of the spill file free pages. A read that brought nothing frees one with its memory, for the next
    /// read: it never was in the file, so nothing refers to its old bytes.
    pub(super) fn free_spilled(&self, spill: &Spill, run: PageRun) {
        let unused = run.len == 1 && !spill.has(run.start) && !self.arena.shows_file(run);
        let mut state = self.state();
        if unused && state.runs.resident_free() < MAX_IDLE {
            state.runs.free(run);
            let wakers = state.serve();
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        } else {
            drop(state);
            spill.free(run);
        }
    }
}

impl Pages for Core {
    fn prepare(&self, page: u32) -> bool {
        let run = PageRun::new(page, 1);
        if !self.lacks_memory(&self.state(), page) || self.arena.commit(run).is_err() {
            return false;
        }
        // A rope may have taken it meanwhile, and has given it memory itself.
        let mut state = self.state();
        let lacked = self.lacks_memory(&state, page) && state.runs.grow_exact(page, 1);
        if lacked {
            state.runs.set_resident(run);
            state.runs.free(run);
        }
        lacked
    }

    fn write(&self, page: u32, len: usize) -> io::Result<()> {
        let Some(spill) = &self.spill else { return Ok(()) };
        let offset = self.bytes(page);
        spill.store(self.arena.filled(page, len), offset)?;
        self.arena.show(PageRun::new(page, 1), &spill.file, offset)
    }

    fn free(&self, run: PageRun) -> u32 {
        let Some(spill) = &self.spill else { return 0 };
        let mut had_memory = 0;
        for page in run.range().map(|page| PageRun::new(page, 1)) {
            let resident = self.state().runs.resident_prefix(page) > 0;
            let in_file = self.arena.shows_file(page);
            had_memory += u32::from(resident && !in_file);
            // A write that failed may have got as far as the disk in part.
            let hole = if resident && !spill.is_named() {
                memory::punch_hole(&spill.file, self.bytes(page.start), self.bytes(1))
            } else {
                Ok(())
            };
            let freed = hole.map_err(io::Error::from).and_then(|()| self.arena.forget(page));
            let mut state = self.state();
            match freed {
                Ok(()) => {
                    if resident {
                        state.runs.clear_resident(page);
                    }
                    state.runs.free(page);
                }
                // Its old bytes may be on their way to a socket, so it must not be reused.
                Err(_lost) => {
                    event!(warn, error = %_lost, "a spilled page could not be punched and is leaked");
                }
            }
            let wakers = state.serve();
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
        had_memory
    }
}
