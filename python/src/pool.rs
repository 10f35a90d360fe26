//! The pool, what it holds, and who waits for it.

use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;

use crate::attach;
use crate::count::Count;
use crate::error::{Context as Refused, plain};
use crate::fork::Born;

/// Recycled memory that ropes receive into: one sparse memfd, whose pages stay resident for the next payload.
///
/// ``capacity`` is the most bytes that all ropes together may hold, whole pages; by default the machine's memory, or
/// the control group's. Only address space is set aside. ``retain`` is the most bytes kept resident while nothing uses
/// them, without a limit by default; ``decay`` is how long, in seconds, 10 by default.
///
/// Raises ValueError for a capacity of 0 or of more than 2**32 pages, OSError for what the kernel refuses. Made before a
/// fork, it raises OSError from every call in the child.
#[pyclass(frozen, weakref, module = "ropewalk")]
pub(crate) struct Pool {
    pool: ropewalk::Pool,
    born: Born,
}

impl Pool {
    fn create(options: ropewalk::PoolOptions) -> PyResult<Pool> {
        let pool = options.create().map_err(|error| plain(&error))?;
        Ok(Pool { pool, born: Born::now() })
    }

    pub(crate) fn check(&self) -> PyResult<&ropewalk::Pool> {
        self.born.check("pool")?;
        Ok(&self.pool)
    }
}

#[pymethods]
impl Pool {
    #[new]
    #[pyo3(signature = (capacity=None, retain=None, decay=None))]
    fn new(capacity: Option<Count>, retain: Option<Count>, decay: Option<f64>) -> PyResult<Pool> {
        let mut options = ropewalk::Pool::options();
        if let Some(Count(capacity)) = capacity {
            options = options.capacity(capacity as u64);
        }
        if let Some(Count(retain)) = retain {
            options = options.retain(retain as u64);
        }
        if let Some(decay) = decay {
            let refused = |_| PyValueError::new_err(format!("decay is 0 to 2**64 seconds, not {decay}"));
            options = options.decay(Duration::try_from_secs_f64(decay).map_err(refused)?);
        }
        Pool::create(options)
    }

    /// Returns what the pool holds and has done so far: a named tuple, sizes in bytes. Gives back pages that have been idle
    /// for longer than ``decay`` first.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let pool = self.check()?;
        let stats = py.detach(|| stats_of(pool));
        let fields = PyTuple::new(
            py,
            [
                stats.capacity,
                stats.in_use,
                stats.warm,
                stats.peak,
                stats.page_size,
                stats.extents,
                stats.fallbacks,
                stats.bytes_copied,
                stats.bytes_mapped,
                stats.maps,
                stats.waiting,
            ],
        )?;
        static STATS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let named = STATS.get_or_try_init(py, || {
            Ok::<_, PyErr>(py.import("ropewalk._stats")?.getattr("PoolStats")?.unbind())
        })?;
        let flags = (format!("{:?}", stats.backing).to_lowercase(), stats.reduced).into_pyobject(py)?;
        attach::call(named.bind(py), &fields.as_sequence().concat(flags.as_sequence())?.to_tuple()?)
    }

    /// Gives all idle memory back to the system; returns how many bytes that were.
    fn trim(&self, py: Python<'_>) -> PyResult<u64> {
        let pool = self.check()?;
        py.detach(|| pool.trim()).map_err(|error| plain(&error))
    }

    /// Requests room for ``nbytes``, first come, first served: ready once it is reserved. :meth:`Rope.add_room` uses it.
    #[pyo3(signature = (nbytes=Count(1)), text_signature = "($self, nbytes=1)")]
    fn wait_for_room(&self, nbytes: Count) -> PyResult<Room> {
        Room::new(self.check()?, nbytes.0)
    }

    fn __repr__(&self) -> PyResult<String> {
        let stats = stats_of(self.check()?);
        Ok(format!(
            "<ropewalk.Pool {} of {} bytes in use, {} warm>",
            stats.in_use, stats.capacity, stats.warm
        ))
    }
}

pub(crate) fn stats_of(pool: &ropewalk::Pool) -> ropewalk::PoolStats {
    pool.stats()
}

/// Returns the pool that is used where none is given, made on the first call; a forked child gets its own.
#[pyfunction]
pub(crate) fn default_pool(py: Python<'_>) -> PyResult<Py<Pool>> {
    static SHARED: Mutex<Option<Py<Pool>>> = Mutex::new(None);
    let lock = || attach::lock(py, &SHARED);
    if let Some(pool) = lock().as_ref().filter(|pool| pool.get().born.here()) {
        return Ok(pool.clone_ref(py));
    }
    let pool = Py::new(py, Pool::create(ropewalk::Pool::options())?)?;
    let mut shared = lock();
    match &*shared {
        Some(first) if first.get().born.here() => Ok(first.clone_ref(py)),
        _ => Ok(shared.insert(pool).clone_ref(py)),
    }
}

/// A request for room in a pool, with a descriptor that is readable once it was granted: its waker needs no GIL.
/// Dropping it withdraws the request, or returns the room.
#[pyclass(frozen, weakref, module = "ropewalk")]
pub(crate) struct Room {
    pool: ropewalk::Pool,
    state: Mutex<Request>,
    bell: Arc<Bell>,
    born: Born,
}

enum Request {
    Waiting(Pin<Box<ropewalk::RoomFuture>>),
    Granted(ropewalk::Room),
    Taken,
}

struct Bell(OwnedFd);

impl Bell {
    fn new() -> io::Result<Bell> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, without another owner.
        Ok(Bell(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn silence(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes are read at most, into eight. If there are none, it is silent already.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let one = 1u64;
        // SAFETY: eight bytes, which live during the call. It cannot be full: it counts to 2^64.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

impl Room {
    fn new(pool: &ropewalk::Pool, nbytes: usize) -> PyResult<Room> {
        let bell = Bell::new().map_err(|error| plain(&error))?;
        let state = Mutex::new(Request::Waiting(Box::pin(pool.wait_for_room(nbytes))));
        Ok(Room { pool: pool.clone(), state, bell: Arc::new(bell), born: Born::now() })
    }

    /// Takes the room, if it was granted.
    pub(crate) fn take(&self, py: Python<'_>) -> PyResult<Option<ropewalk::Room>> {
        if !self.ready(py)? {
            return Ok(None);
        }
        let mut state = attach::lock(py, &self.state);
        match std::mem::replace(&mut *state, Request::Taken) {
            Request::Granted(room) => Ok(Some(room)),
            Request::Waiting(_) | Request::Taken => Ok(None),
        }
    }
}

#[pymethods]
impl Room {
    /// Returns a descriptor that is readable when :meth:`ready` may have changed.
    fn fileno(&self) -> i32 {
        self.bell.0.as_raw_fd()
    }

    /// Returns True if the room was granted, and not taken by :meth:`Rope.add_room` since. Raises PoolFull if it is more
    /// than the pool's capacity.
    fn ready(&self, py: Python<'_>) -> PyResult<bool> {
        self.born.check("request for room")?;
        self.bell.silence();
        let waker = Waker::from(Arc::clone(&self.bell));
        let mut state = attach::lock(py, &self.state);
        if let Request::Waiting(future) = &mut *state {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(Ok(room)) => *state = Request::Granted(room),
                Poll::Ready(Err(error)) => {
                    return Err(
                        Refused { pool: Some(self.pool.clone()), ..Refused::default() }.raise(py, &error)
                    );
                }
                Poll::Pending => {}
            }
        }
        Ok(matches!(*state, Request::Granted(_)))
    }
}
