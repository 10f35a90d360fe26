//! Pages that go to a file: when they are written, and how they are freed.

use std::io;
use std::sync::Arc;

use super::{Core, State};
use crate::event::event;
use crate::pool::refused::is_at_capacity;
use crate::pool::runs::PageRun;
use crate::pool::spill::{Job, Spill};
use crate::sys::{memory, spawn};

/// Most pages that have memory and no rope: one that a rope takes next, and one that a read brought nothing for.
const MAX_IDLE: u32 = 2;

impl Core {
    /// Starts the thread of a spill file, which ends when the pool does.
    pub(super) fn start_spilling(self: &Arc<Self>) -> io::Result<()> {
        let Some(spill) = self.spill.clone() else { return Ok(()) };
        let core = Arc::downgrade(self);
        spawn("ropewalk-spill", move || {
            while let Some(job) = spill.next() {
                let Some(core) = core.upgrade() else { return };
                match job {
                    Job::Prepare(page) => spill.prepared(page, core.prepare_page(page)),
                    Job::Write { page, len } => spill.wrote(page, len, core.write_page(&spill, page, len)),
                    Job::Free(run) => {
                        let (staged, left) = core.free_pages(&spill, run);
                        spill.freed(staged, left);
                    }
                }
            }
        })
    }

    /// Asks a spill file for room to stage these pages.
    pub(super) fn admit(&self, run: PageRun) -> io::Result<()> {
        let Some(spill) = &self.spill else { return Ok(()) };
        match spill.admit(run.len) {
            Err(full) if is_at_capacity(&full) && self.give_back_all()? > 0 => spill.admit(run.len),
            admitted => admitted,
        }
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
        let freed = self.change(|state| {
            let frees = unused && state.runs.resident_free() < MAX_IDLE;
            if frees {
                state.runs.free(run);
            }
            frees
        });
        if !freed {
            spill.free(run);
        }
    }

    /// Gives a page memory before a rope takes it, unless one has; returns whether the page has it, and no rope.
    fn prepare_page(&self, page: u32) -> bool {
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

    /// Writes the first `len` bytes of a page to the file, and lets its addresses show the file.
    fn write_page(&self, spill: &Spill, page: u32, len: usize) -> io::Result<()> {
        let offset = self.bytes(page);
        spill.store(self.arena.filled(page, len), offset)?;
        self.arena.show(PageRun::new(page, 1), &spill.file, offset)
    }

    /// Takes disk space and memory of pages back and frees them; returns how many of those had memory, and the pages for
    /// which that failed.
    fn free_pages(&self, spill: &Spill, run: PageRun) -> (u32, Vec<PageRun>) {
        let (mut had_memory, mut left) = (0, Vec::new());
        for page in run.range().map(|page| PageRun::new(page, 1)) {
            let resident = self.state().runs.resident_prefix(page) > 0;
            let in_file = self.arena.shows_file(page);
            // A write that failed may have got as far as the disk in part.
            let hole = if resident && !spill.is_named() {
                memory::punch_hole(&spill.file, self.bytes(page.start), self.bytes(1))
            } else {
                Ok(())
            };
            let freed = hole.map_err(io::Error::from).and_then(|()| self.arena.forget(page));
            match freed {
                Ok(()) => {
                    had_memory += u32::from(resident && !in_file);
                    self.change(|state| {
                        if resident {
                            state.runs.clear_resident(page);
                        }
                        state.runs.free(page);
                    });
                }
                // Its old bytes may be on their way to a socket, so it must not be reused.
                Err(_kept) => {
                    event!(warn, error = %_kept, "a spilled page could not be punched; it is tried again later");
                    left.push(page);
                }
            }
        }
        (had_memory, left)
    }
}
