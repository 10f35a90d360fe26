//! Which process this is: whether a fork has happened since a value was made.
#![allow(unsafe_code)] // a page that the kernel clears in a child

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

use super::platform;

/// The process in which a value was made.
///
/// ```text
///   parent  word 1 ── fork ──► child  word 0 (MADV_WIPEONFORK), 2 once it makes a pool
/// ```
///
/// Asking costs one load, and getpid(2) where the kernel does not clear pages in a child (before Linux 4.14).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    /// Holds `generation` in this process.
    word: Option<&'static AtomicU64>,
    generation: u64,
    pid: u32,
}

/// The generation of this process, or 0 in a child that has not asked yet.
static WORD: OnceLock<Option<&'static AtomicU64>> = OnceLock::new();

/// The first process that asked.
static FIRST: OnceLock<Process> = OnceLock::new();

/// The last generation given out, in this process or in one that it was forked from.
static LAST: AtomicU64 = AtomicU64::new(0);

impl Process {
    /// Returns this process.
    pub(crate) fn current() -> Process {
        let word = *WORD.get_or_init(wiped_word);
        let generation = word.map_or(0, |word| {
            if word.load(Ordering::Acquire) == 0 {
                let next = LAST.fetch_add(1, Ordering::Relaxed) + 1;
                // Another thread may have been first.
                let _ = word.compare_exchange(0, next, Ordering::AcqRel, Ordering::Acquire);
            }
            word.load(Ordering::Acquire)
        });
        let current = Process { word, generation, pid: std::process::id() };
        FIRST.get_or_init(|| current);
        current
    }

    /// Returns whether this process was forked from one that had asked, or that process from another: bytes that it
    /// inherited may not be mapped here. One load, as for [`is_current`](Process::is_current).
    #[inline]
    pub(crate) fn is_child() -> bool {
        FIRST.get().is_some_and(|first| !first.is_current())
    }

    /// Returns whether this is still the process that runs, and no child of it.
    #[inline]
    pub(crate) fn is_current(self) -> bool {
        match self.word {
            Some(word) => word.load(Ordering::Relaxed) == self.generation,
            None => self.has_pid(),
        }
    }

    #[cold]
    #[inline(never)]
    fn has_pid(self) -> bool {
        std::process::id() == self.pid
    }
}

/// mmap(2) and madvise(2) with `MADV_WIPEONFORK`: a word that is 0 in every child. Never unmapped.
fn wiped_word() -> Option<&'static AtomicU64> {
    if cfg!(miri) {
        return None; // it knows no madvise(2)
    }
    // Both calls round it up to a page.
    let len = NonZeroUsize::new(size_of::<AtomicU64>())?;
    let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, which replaces nothing.
    let page = unsafe { mmap_anonymous(None, len, prot, MapFlags::MAP_PRIVATE) }.ok()?;
    // SAFETY: mapped above; a child is to find zeros there.
    unsafe { platform::wipe_on_fork(page, len.get()) }.ok()?;
    // SAFETY: a page of zeros, aligned, mapped for as long as the process lives.
    Some(unsafe { page.cast::<AtomicU64>().as_ref() })
}
