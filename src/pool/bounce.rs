//! Small hot buffers through which bytes get into cold pages.
//!
//! ```text
//!   cold page    readv ──► bounce buffer (in the cache) ── pwrite ──► page of the memfd
//!   warm page    readv ──────────────────────────────────────────────► page of the memfd
//! ```
//!
//! Reading straight into a page without memory costs a fault and zeroing it; committing it beforehand
//! costs the same in larger steps. A second copy out of the cache costs less than either.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Extent;
use crate::sys::pressure;

/// Bytes per buffer: it has to stay in the second-level cache together with what the kernel touches.
const SIZE: usize = 512 << 10;

#[derive(Default)]
pub(super) struct Bounces {
    idle: Mutex<Vec<Extent>>,
    /// A write to cold pages has failed: commit before anything is read, so that it is an error then.
    refused: AtomicBool,
}

impl Bounces {
    /// A buffer, unless cold pages are to be committed instead; if `zero`, one that forgets what was in it.
    pub(super) fn take(&self, zero: bool) -> Option<Extent> {
        // What is read must find memory: by then it is out of the socket.
        if self.refused.load(Ordering::Relaxed) || pressure::admit(SIZE as u64).is_err() {
            return None;
        }
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.or_else(|| Extent::on_heap(SIZE, zero).ok())
    }

    /// Takes a buffer back.
    pub(super) fn give(&self, mut buffer: Extent) {
        buffer.clear();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }

    pub(super) fn refuse(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    pub(super) fn drop_idle(&self) {
        self.refused.store(false, Ordering::Relaxed);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
