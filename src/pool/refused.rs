//! The errors with which a pool refuses.

use std::error::Error;
use std::fmt;
use std::io;

/// In a child of the process that made the pool.
pub(super) fn inherited() -> io::Error {
    let message =
        "this pool was made before fork(); the child cannot use it, make another one with Pool::new";
    io::Error::new(io::ErrorKind::Unsupported, message)
}

/// The pool has no room for a request. Unlike a lack of memory this is over once ropes are dropped.
#[derive(Debug)]
pub(super) struct AtCapacity {
    pub(super) in_use: u64,
    pub(super) capacity: u64,
    pub(super) requested: u64,
    pub(super) what: Full,
}

/// What has no room.
#[derive(Debug)]
pub(super) enum Full {
    Pool,
    /// There is capacity for it, but no run of adjacent pages.
    Fragmented,
    Spill,
    /// Pages that ropes are filling before they go to the file.
    Staging,
}

impl fmt::Display for AtCapacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (in_use, capacity) = (Size(self.in_use), Size(self.capacity));
        let requested = Size(self.requested);
        match self.what {
            Full::Pool => write!(
                f,
                "pool is at capacity: {in_use} of {capacity} in use, {requested} requested; drop ropes or raise \
                 PoolOptions::capacity"
            ),
            Full::Fragmented => write!(
                f,
                "pool is fragmented: {in_use} of {capacity} in use, no {requested} of adjacent pages; receive without \
                 reserving, or drop ropes"
            ),
            Full::Spill => write!(
                f,
                "pool and its spill file are at capacity: {in_use} of {capacity} spilled, {requested} requested; drop \
                 ropes or raise PoolOptions::spill"
            ),
            Full::Staging => write!(
                f,
                "too many ropes spill at once: they are filling {in_use} of the {capacity} that may wait for the disk, \
                 {requested} requested; drop ropes or raise PoolOptions::capacity"
            ),
        }
    }
}

impl Error for AtCapacity {}

impl From<AtCapacity> for io::Error {
    fn from(full: AtCapacity) -> io::Error {
        io::Error::new(io::ErrorKind::OutOfMemory, full)
    }
}

/// Returns whether the pool was at capacity when this happened, so that waiting helps.
pub(crate) fn is_at_capacity(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<AtCapacity>())
}

/// Bytes, in the unit that suits them.
pub(super) struct Size(pub(super) u64);

impl fmt::Display for Size {
    #[allow(clippy::cast_precision_loss)] // one decimal is shown
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] =
            [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match UNITS.iter().find(|(_, unit)| self.0 >= *unit) {
            Some((name, unit)) => write!(f, "{:.1} {name}", self.0 as f64 / *unit as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}
