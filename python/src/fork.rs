//! A forked child has not the pool's memory, and to touch it there would be a fault. So whatever was made
//! before a fork refuses every call behind it, in one place, [`Born::check`]; and the memory that views have
//! exported, which is read without any call, is left to the child to read.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once};

use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;

use crate::pushed;

/// How often this process, its parent, and so on, were forked.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The process in which something was made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Born(u32);

impl Born {
    pub(crate) fn now() -> Born {
        Born(FORKS.load(Ordering::Relaxed))
    }

    pub(crate) fn here(self) -> bool {
        self == Born::now()
    }

    /// Raises OSError if the object was made before a fork.
    #[inline]
    pub(crate) fn check(self, what: &str) -> PyResult<()> {
        if self.here() { Ok(()) } else { Err(inherited(what)) }
    }
}

#[cold]
fn inherited(what: &str) -> PyErr {
    let message = format!(
        "this {what} was made before the process was forked, and its memory is the parent's alone; \
         make it in the child, or send its bytes there"
    );
    PyOSError::new_err((libc::EPERM, message))
}

/// Bytes that views have exported: where they end, and how often.
static EXPORTED: Mutex<BTreeMap<usize, (usize, usize)>> = Mutex::new(BTreeMap::new());

fn exported() -> MutexGuard<'static, BTreeMap<usize, (usize, usize)>> {
    EXPORTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Notes an export of `bytes`.
pub(crate) fn export(bytes: &[u8]) {
    let Range { start, end } = bytes.as_ptr_range();
    let mut exported = exported();
    let (most, count) = exported.entry(start.addr()).or_default();
    (*most, *count) = (end.addr().max(*most), *count + 1);
}

/// Notes the end of an export of `bytes`.
pub(crate) fn unexport(bytes: &[u8]) {
    let start = bytes.as_ptr().addr();
    let mut exported = exported();
    if let Some((_, count)) = exported.get_mut(&start) {
        *count -= 1;
        if *count == 0 {
            exported.remove(&start);
        }
    }
}

/// pthread_atfork(3): counts the forks from here on, from any library, and lends exported memory to them.
pub(crate) fn watch() -> PyResult<()> {
    static WATCHED: Once = Once::new();
    let mut refused = 0;
    WATCHED.call_once(|| {
        // SAFETY: this library, and the handlers with it, is never unloaded.
        refused = unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    });
    if refused == 0 { Ok(()) } else { Err(PyRuntimeError::new_err("no memory to watch forks with")) }
}

/// What a fork holds while it is under way: locks that a child would otherwise find locked for ever, by a thread that it
/// has not, and the memory that was lent.
struct Forking {
    _exported: MutexGuard<'static, BTreeMap<usize, (usize, usize)>>,
    _pushed: pushed::Lock,
    lent: Vec<Range<usize>>,
}

thread_local! {
    static FORKING: Cell<Option<Forking>> = const { Cell::new(None) };
}

extern "C" fn before() {
    let exported = exported();
    let lent = if exported.is_empty() { Vec::new() } else { within_pools(&exported) };
    lent.iter().for_each(|pages| advise(pages, libc::MADV_DOFORK));
    FORKING.set(Some(Forking { _exported: exported, _pushed: pushed::lock(), lent }));
}

extern "C" fn in_parent() {
    if let Some(forking) = FORKING.take() {
        forking.lent.iter().for_each(|pages| advise(pages, libc::MADV_DONTFORK));
    }
}

extern "C" fn in_child() {
    drop(FORKING.take());
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// The pages of what was exported that are a pool's: only those are not a child's anyway.
fn within_pools(exported: &BTreeMap<usize, (usize, usize)>) -> Vec<Range<usize>> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let pools = maps.lines().filter(|line| line.contains("/memfd:ropewalk")).filter_map(range);
    let cut = |pool: Range<usize>| {
        exported.iter().filter_map(move |(&start, &(end, _))| {
            let pages = start.max(pool.start) & !(PAGE - 1)..end.min(pool.end).next_multiple_of(PAGE);
            Some(pages).filter(|pages| !pages.is_empty() && start < pool.end && end > pool.start)
        })
    };
    pools.flat_map(cut).collect()
}

/// At least that of a page: what is rounded to it is rounded to pages, on every machine with pages of 4 KiB.
const PAGE: usize = 4096;

fn range(line: &str) -> Option<Range<usize>> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

/// madvise(2). Ignores an error: the child then faults, as it would without the advice.
fn advise(pages: &Range<usize>, advice: c_int) {
    let start = std::ptr::without_provenance_mut(pages.start);
    // SAFETY: whether a child inherits pages changes nothing for this process.
    unsafe { libc::madvise(start, pages.len(), advice) };
}
