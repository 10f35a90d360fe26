//! What all connections share: one pool, and how much of it may still be taken.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use ropewalk::{Pool, PoolStats, Rope, View};

pub(crate) struct Memory {
    pub(crate) pool: Pool,
    pub(crate) max_message: usize,
    pub(crate) messages: u64,
    /// Bytes on the heap: what views had to copy.
    copies: Arc<AtomicUsize>,
    /// Bytes of the pool that are set aside for messages in progress.
    promised: Arc<AtomicUsize>,
    /// The system has refused memory since the last [`refresh`](Memory::refresh).
    ran_out: bool,
}

/// How much there is to receive into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Less than half of the capacity is in use: first come, first served.
    Plenty,
    /// A message is received only once there is room for all that it lacks.
    Scarce,
    /// Nothing is received.
    None,
}

impl Memory {
    pub(crate) fn new(capacity: u64, max_message: usize) -> io::Result<Memory> {
        let pool = Pool::options().capacity(capacity).create()?;
        Ok(Memory {
            pool,
            max_message,
            messages: 0,
            copies: Arc::default(),
            promised: Arc::default(),
            ran_out: false,
        })
    }

    pub(crate) fn level(&self) -> Level {
        let PoolStats { capacity, in_use, .. } = self.pool.stats();
        let (copies, promised) = (self.copies() as u64, self.promised());
        if self.ran_out || copies >= capacity / 2 {
            Level::None
        } else if in_use + promised + copies >= capacity / 2 {
            Level::Scarce
        } else {
            Level::Plenty
        }
    }

    /// Sets `bytes` aside for one message, if the pool has them, in any number of runs.
    pub(crate) fn promise(&self, bytes: usize) -> Option<Promise> {
        let PoolStats { capacity, in_use, page_size, .. } = self.pool.stats();
        // They end inside a page, and pages are taken whole.
        let kept = bytes + page_size as usize;
        let fits = in_use + self.promised() + kept as u64 <= capacity;
        fits.then(|| Promise::new(bytes, kept, &self.promised))
    }

    fn promised(&self) -> u64 {
        self.promised.load(Ordering::Relaxed) as u64
    }

    /// Notes that the system has refused memory.
    pub(crate) fn ran_out(&mut self) {
        self.ran_out = true;
    }

    /// Lets the system be asked again, and takes back what it may have.
    pub(crate) fn refresh(&mut self) -> PoolStats {
        self.ran_out = false;
        self.pool.stats()
    }

    pub(crate) fn copies(&self) -> usize {
        self.copies.load(Ordering::Relaxed)
    }

    /// Finalises whole messages, so that each is one slice, and answers them with themselves.
    pub(crate) fn echo(&mut self, whole: Rope, messages: usize, outgoing: &mut Rope) {
        self.messages += messages as u64;
        match whole.finalize() {
            Ok(view) if view.copied_bytes() == 0 => outgoing.push(view),
            Ok(view) => outgoing.push(Bytes::from_owner(Copied::new(view, &self.copies))),
            // No memory to make it contiguous, but an echo can go out in pieces.
            Err(error) => outgoing.append(error.into_rope()),
        }
    }
}

/// Bytes that are set aside for one message, until they are taken or this is dropped.
pub(crate) struct Promise {
    bytes: usize,
    /// What it still adds to the total.
    kept: usize,
    total: Arc<AtomicUsize>,
}

impl Promise {
    fn new(bytes: usize, kept: usize, total: &Arc<AtomicUsize>) -> Promise {
        total.fetch_add(kept, Ordering::Relaxed);
        Promise { bytes, kept, total: Arc::clone(total) }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Notes that so many of them have been taken.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.kept -= bytes;
        self.total.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.total.fetch_sub(self.kept, Ordering::Relaxed);
    }
}

/// A view that counts what it had to copy for as long as it lives.
struct Copied {
    view: View,
    total: Arc<AtomicUsize>,
}

impl Copied {
    fn new(view: View, total: &Arc<AtomicUsize>) -> Copied {
        total.fetch_add(view.copied_bytes(), Ordering::Relaxed);
        Copied { view, total: Arc::clone(total) }
    }
}

impl AsRef<[u8]> for Copied {
    fn as_ref(&self) -> &[u8] {
        &self.view
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        self.total.fetch_sub(self.view.copied_bytes(), Ordering::Relaxed);
    }
}
