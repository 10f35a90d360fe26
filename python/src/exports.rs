//! What ropes, views and cursors refer to, as the garbage collector has to see it.
//!
//! An object whose buffer was pushed may refer to the rope in turn. The collector counts each reference that it is
//! shown, so the export's own has to be shown once, however many ropes, views and cursors share the segment. An
//! [`Exported`], a Python object, stands for the export; each holder has a reference of its own to it, in its
//! [`Exports`]:
//!
//! ```text
//!  rope ──► Exports ──┐
//!  slice ─► Exports ──┼─► Exported ───┐
//!  view ──► Exports ──┘               ├─► exporter ─► … ─► rope
//!    └────► Bytes ──────► Export ─────┘
//!                          one reference, which the Exported shows
//! ```
//!
//! An `Exports` lists whatever its holder's bytes refer to. It may list more, until they are all gone: then the collector
//! keeps an exporter for longer. It must not list less, or the collector would take an exporter that is in use. So
//! bytes and list change under one lock. They change attached, and the collector, which looks at a list more than
//! once, always sees the same.

use std::collections::BTreeMap;
use std::mem::{self, ManuallyDrop};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use crate::pushed::Export;

/// An export, as the collector sees it.
#[pyclass(frozen, module = "ropewalk._ropewalk")]
pub(crate) struct Exported {
    export: Weak<Export>,
    bytes: Range<usize>,
    /// The export's own reference, valid while that lives: an exporter is released attached.
    exporter: ManuallyDrop<Py<PyAny>>,
}

impl Exported {
    pub(crate) fn of(py: Python<'_>, export: &Arc<Export>) -> Exported {
        let Range { start, end } = export.bytes().as_ptr_range();
        Exported {
            export: Arc::downgrade(export),
            bytes: start.addr()..end.addr(),
            exporter: export.exporter(py),
        }
    }

    fn lives(&self) -> bool {
        self.export.strong_count() > 0
    }
}

#[pymethods]
impl Exported {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if self.lives() { visit.call(&*self.exporter) } else { Ok(()) }
    }
}

/// The exports that the bytes of a rope, a view or a cursor may refer to.
#[derive(Default)]
pub(crate) struct Exports(Mutex<Listed>);

/// Fewest entries to look through for dead ones.
const MIN_PRUNED: usize = 32;

#[derive(Default)]
struct Listed {
    /// Keys: the address of the bytes, and of the `Exported`.
    by_start: BTreeMap<(usize, usize), Py<Exported>>,
    /// Bytes of the longest entry.
    longest: usize,
    /// Entries left when dead ones were last removed.
    pruned: usize,
}

impl Listed {
    fn add(&mut self, exported: Py<Exported>) {
        if self.by_start.len() >= (2 * self.pruned).max(MIN_PRUNED) {
            self.by_start.retain(|_, exported| exported.get().lives());
            self.pruned = self.by_start.len();
        }
        let bytes = &exported.get().bytes;
        self.longest = self.longest.max(bytes.len());
        self.by_start.insert((bytes.start, exported.as_ptr().addr()), exported);
    }

    /// Returns the exports with bytes of `chunk`.
    fn of_chunk(&self, chunk: &[u8]) -> impl Iterator<Item = &Py<Exported>> {
        let Range { start, end } = chunk.as_ptr_range();
        let (start, end) = (start.addr(), end.addr());
        let near = self.by_start.range((start.saturating_sub(self.longest), 0)..(end, 0));
        near.map(|(_, exported)| exported).filter(move |exported| exported.get().bytes.end > start)
    }
}

impl Exports {
    fn listed(&self) -> MutexGuard<'_, Listed> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.listed().by_start.is_empty()
    }

    pub(crate) fn add(&self, exported: Py<Exported>) {
        self.listed().add(exported);
    }

    pub(crate) fn append(&self, others: Exports) {
        let others = mem::take(&mut *others.listed());
        let mut listed = self.listed();
        others.by_start.into_values().for_each(|exported| listed.add(exported));
    }

    pub(crate) fn take(&self) -> Exports {
        Exports(Mutex::new(mem::take(&mut self.listed())))
    }

    /// Returns the exports that `chunks` refer to.
    pub(crate) fn of<'a>(&self, py: Python<'_>, chunks: impl IntoIterator<Item = &'a [u8]>) -> Exports {
        let (listed, mut part) = (self.listed(), Listed::default());
        if !listed.by_start.is_empty() {
            let found = chunks.into_iter().flat_map(|chunk| listed.of_chunk(chunk));
            found.for_each(|exported| part.add(exported.clone_ref(py)));
        }
        drop(listed);
        Exports(Mutex::new(part))
    }

    /// Shows the exports to the collector. The lock is free, except in a forked child if another thread held it.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Ok(listed) = self.0.try_lock() else { return Ok(()) };
        listed.by_start.values().try_for_each(|exported| visit.call(exported))
    }
}
