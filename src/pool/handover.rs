//! The private pool of a rope that is handed to another process.
//!
//! Seals are a file's, and the arena of a shared pool holds bytes of other ropes. So such a rope has a pool over a memfd
//! of its own, without seals. The memfd is sealed when nothing refers to the pool any more
//! (`view/seal.rs`).

use std::io;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use super::core::Pool;
use super::options::PoolOptions;
use crate::sys::pipe::Pipe;

impl Pool {
    /// Makes a private pool, the first page of which is at offset 0 of its memfd.
    ///
    /// It never gives idle pages back: they go with the pool, and a hole in the memfd could not be sealed.
    ///
    /// # Errors
    ///
    /// As for [`PoolOptions::create`], and when the kernel refuses a memfd.
    pub(crate) fn for_handover() -> io::Result<Pool> {
        PoolOptions { handover: true, decay: Duration::MAX, ..Pool::options() }.create()
    }

    /// Returns whether the pool's memfd can be sealed.
    pub(crate) fn is_for_handover(&self) -> bool {
        self.core().handover
    }

    /// The pipe for what is spliced into the pool's memfd; `None` if that cannot be done.
    ///
    /// Where none can be made, for want of descriptors, the next call tries again.
    pub(crate) fn pipe(&self) -> Option<MutexGuard<'_, Option<Pipe>>> {
        let core = self.core();
        if !core.handover || self.check_process().is_err() {
            return None;
        }
        // Another rope of the pool may be waiting for its socket with it.
        let mut pipe = core.pipe.try_lock().ok()?;
        if pipe.is_none() {
            *pipe = Some(Pipe::new().ok()?);
        }
        Some(pipe).filter(|pipe| pipe.as_ref().is_some_and(|pipe| !pipe.is_refused()))
    }

    /// Returns how many handles and [`PageRef`](super::PageRef)s refer to this pool, this handle included. If all of
    /// them are the caller's, no other one can be made.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(self.shard())
    }
}
