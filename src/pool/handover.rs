//! The private pool of a rope that is handed to another process.
//!
//! Seals are a file's, and the arena of a shared pool holds bytes of other ropes. So such a rope has a pool over a memfd
//! of its own, without seals. The memfd is sealed when nothing refers to the pool any more
//! (`view/seal.rs`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{Pool, PoolOptions};

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

    /// Returns how many handles and [`PageRef`](super::PageRef)s refer to this pool, this handle included. If all of
    /// them are the caller's, no other one can be made.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(self.shard())
    }
}
