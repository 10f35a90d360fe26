//! The rope: one lock, one fork check and one way out of the GIL for all methods.
//!
//! Nothing runs Python code while the lock is held, so that none of it can wait for the lock: what dies there
//! is released behind it (`pushed.rs`), and objects are made before or after.

use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::IntoRawFd;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Buf, Bytes};
use pyo3::PyTraverseError;
use pyo3::exceptions::{PyIndexError, PyOverflowError, PyTypeError, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView, PySlice};

use crate::attach;
use crate::count::Count;
use crate::cursor::Cursor;
use crate::error::{Context, PoolFull, plain};
use crate::exports::Exports;
use crate::fd::Fd;
use crate::fork::Born;
use crate::heap;
use crate::lent::{Lending, Tail};
use crate::pool::{self, Pool};
use crate::pushed::{self, Segment, Sweep};
use crate::send::{self, Source};
use crate::view::{self, View};

/// Bytes in the order in which they arrived, in as many pieces as they came in.
///
/// Receives straight into pages of ``pool``, by default the process's shared one; sends by gather writes; is cut and joined
/// without copying; ends as one :class:`View`. ``limit`` is the most bytes that it may hold by receiving.
///
/// ``len(rope)`` is O(1). ``rope[a:b]`` is a rope of its own that shares the memory, O(its segments); ``bytes(rope)`` is a
/// copy; ``needle in rope`` searches. Numbers are of bytes, and a negative one is a ValueError. Calls of several threads
/// come one after the other; the GIL is released around system calls and copies. Made before a fork, it raises OSError
/// from every call in the child. Without memory for a copy, or for a table of the segments, a call raises MemoryError,
/// and nothing has changed.
#[pyclass(frozen, weakref, sequence, module = "ropewalk")]
pub(crate) struct Rope {
    state: Mutex<State>,
    /// What the bytes refer to; changed under the lock of the state, attached.
    exports: Exports,
    born: Born,
    _sweep: Sweep,
}

struct State {
    rope: ropewalk::Rope,
    lending: Lending,
    /// Why the last room to be lent was of one byte.
    refused: Option<io::Error>,
    /// The rope as it was when a cursor was made, until it is changed.
    snapshot: Option<Arc<ropewalk::Rope>>,
}

impl State {
    fn len(&self) -> usize {
        self.rope.len() + self.lending.filled()
    }

    /// Moves bytes written to lent room into the rope. Fails without memory for a copy, where one is needed.
    fn settle(&mut self) -> io::Result<()> {
        self.lending.settle(&mut self.rope)
    }

    /// Returns the rope, with all bytes, to be changed.
    fn changed(&mut self) -> io::Result<&mut ropewalk::Rope> {
        self.settle()?;
        self.snapshot = None;
        Ok(&mut self.rope)
    }

    /// Lends room to read into, or one byte of the heap if there is none, and notes why.
    fn lend(&mut self, hint: usize) -> io::Result<()> {
        self.changed()?;
        let want = self.lending.want().max(hint);
        if self.rope.len() >= MIN_MAPPED {
            // Room elsewhere then goes on where in a page the bytes left off, so that a view can map it. Without such
            // a run, what there is will do.
            let _no_run = self.rope.reserve(want);
        }
        match self.rope.lend(want) {
            Ok(lent) => {
                self.lending.lend(lent);
                self.refused = None;
                Ok(())
            }
            Err(error) => {
                self.refused = Some(error);
                self.lending.spill()
            }
        }
    }

    /// Moves the first bytes to `copy`, unless there are fewer.
    fn take(&mut self, copy: &mut [u8]) -> io::Result<bool> {
        let rope = self.changed()?;
        let enough = copy.len() <= rope.len();
        if enough {
            rope.copy_to_slice(copy);
            self.tidy();
        }
        Ok(enough)
    }

    /// Drops all bytes, also those in lent room, which stays with what exports it.
    fn clear(&mut self) {
        self.lending.forget();
        self.snapshot = None;
        self.rope.clear();
    }

    /// Returns the pages of an emptied rope to the pool.
    fn tidy(&mut self) {
        if self.rope.is_empty() {
            self.rope.clear();
        }
    }

    fn context(&self) -> Context {
        Context { held: self.len(), ..Context::of(&self.rope) }
    }
}

/// Fewest bytes of a rope that is worth being mapped in the end, rather than copied.
const MIN_MAPPED: usize = 256 << 10;

/// Fewest bytes whose copy takes longer than it takes others to notice that they may run.
const MIN_DETACHED: usize = 64 << 10;

/// Most bytes of a size hint that are heeded.
const MAX_HINT: usize = 64 << 10;

impl Rope {
    fn of(rope: ropewalk::Rope, exports: Exports) -> Rope {
        let state = State { rope, lending: Lending::default(), refused: None, snapshot: None };
        Rope { state: Mutex::new(state), exports, born: Born::now(), _sweep: Sweep }
    }

    fn lock(&self, py: Python<'_>) -> PyResult<MutexGuard<'_, State>> {
        self.born.check("rope")?;
        Ok(attach::lock(py, &self.state))
    }

    /// Locks the state, with all bytes in the rope. The thread must not detach while it holds the lock.
    fn settled(&self, py: Python<'_>) -> PyResult<MutexGuard<'_, State>> {
        let mut state = self.lock(py)?;
        let Err(error) = state.settle() else { return Ok(state) };
        let context = state.context();
        drop(state);
        Err(context.raise(py, &error))
    }

    /// As [`settled`](Rope::settled), to change the rope.
    fn changed(&self, py: Python<'_>) -> PyResult<MutexGuard<'_, State>> {
        let mut state = self.settled(py)?;
        state.snapshot = None;
        Ok(state)
    }

    /// Does something with the state that may fail, detached.
    fn detached<R: Send>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&mut State) -> io::Result<R> + Send,
    ) -> PyResult<R> {
        self.born.check("rope")?;
        let done =
            attach::detached(py, &self.state, |state| act(state).map_err(|error| (state.context(), error)));
        done.map_err(|(context, error)| context.raise(py, &error))
    }

    /// Changes the rope by what may fail, detached.
    fn attempt<R: Send>(
        &self,
        py: Python<'_>,
        attempt: impl FnOnce(&mut ropewalk::Rope) -> io::Result<R> + Send,
    ) -> PyResult<R> {
        let done = self.detached(py, |state| state.changed().and_then(attempt));
        self.sweep(py);
        done
    }

    /// Releases exports that no byte refers to. Called after each change that may drop bytes or move them elsewhere.
    fn sweep(&self, py: Python<'_>) {
        if !self.exports.is_empty() {
            let state = attach::lock(py, &self.state);
            if state.len() == 0 {
                self.exports.take();
            }
        }
        pushed::release(py);
    }

    /// Puts bytes in front or behind.
    fn put(
        &self,
        buffer: &Bound<'_, PyAny>,
        reserve: impl FnOnce(&mut ropewalk::Rope) -> PyResult<()>,
        put: impl FnOnce(&mut ropewalk::Rope, Bytes),
    ) -> PyResult<()> {
        heap::check(0)?;
        let segment = view::segment(buffer)?;
        let mut state = self.changed(buffer.py())?;
        check_sum(state.len(), segment.bytes.len())?;
        reserve(&mut state.rope)?;
        self.exports.append(segment.exports);
        put(&mut state.rope, segment.bytes);
        Ok(())
    }

    /// Returns a rope of all bytes, which shares the memory, and the exports that they refer to.
    fn all(&self, py: Python<'_>) -> PyResult<(ropewalk::Rope, Exports)> {
        let state = self.settled(py)?;
        heap::check(state.rope.num_segments())?;
        Ok((state.rope.clone(), self.exports.of(py, state.rope.chunks())))
    }

    /// Takes all bytes, and the exports that they refer to.
    fn take(&self, py: Python<'_>) -> PyResult<(ropewalk::Rope, Exports)> {
        let mut state = self.changed(py)?;
        let rope = &mut state.rope;
        let mut rest = rope.pool().map(ropewalk::Rope::in_pool).unwrap_or_default();
        rest.set_limit(rope.limit());
        Ok((mem::replace(rope, rest), self.exports.take()))
    }

    /// Puts back what [`take`](Rope::take) took, in front of what has come since.
    fn put_back(&self, py: Python<'_>, rope: ropewalk::Rope, exports: Exports) -> PyResult<()> {
        let mut state = self.lock(py)?;
        state.snapshot = None;
        let since = mem::replace(&mut state.rope, rope);
        state.rope.append(since);
        self.exports.append(exports);
        Ok(())
    }

    /// Returns one of the rope's segments. Called under its lock.
    fn segment(&self, py: Python<'_>, bytes: Bytes) -> Segment {
        Segment { exports: self.exports.of(py, [&bytes[..]]), bytes }
    }

    fn within(&self, what: &str, at: usize, len: usize) -> PyResult<()> {
        if at > len {
            return Err(PyIndexError::new_err(format!("{what}: {at} is beyond the rope's {len} bytes")));
        }
        Ok(())
    }
}

/// Most bytes for which Python has a size.
const MAX_LEN: usize = isize::MAX.cast_unsigned();

/// Returns the limit of receiving; without one, `MAX_LEN`.
fn bounded(limit: Option<Count>) -> usize {
    limit.map_or(MAX_LEN, |limit| limit.0.min(MAX_LEN))
}

/// Refuses to add `more` bytes to a rope of `len` where Python has no size for all of them. The same buffer may be
/// pushed often, so that this is not for want of memory.
fn check_sum(len: usize, more: usize) -> PyResult<()> {
    if len.saturating_add(more) > MAX_LEN {
        let message =
            format!("a rope of {len} bytes takes no {more} more: at most sys.maxsize, {}", isize::MAX);
        return Err(PyOverflowError::new_err(message));
    }
    Ok(())
}

#[pymethods]
impl Rope {
    #[new]
    #[pyo3(signature = (pool=None, limit=None))]
    fn new(py: Python<'_>, pool: Option<Py<Pool>>, limit: Option<Count>) -> PyResult<Rope> {
        let pool = pool.map_or_else(|| pool::default_pool(py), Ok)?;
        let mut rope = ropewalk::Rope::in_pool(pool.get().check()?);
        rope.set_limit(bounded(limit));
        Ok(Rope::of(rope, Exports::default()))
    }

    /// Most bytes that the rope may hold by receiving; None without a limit.
    #[getter]
    fn limit(&self, py: Python<'_>) -> PyResult<Option<usize>> {
        Ok(Some(self.lock(py)?.rope.limit()).filter(|&limit| limit < MAX_LEN))
    }

    #[setter]
    fn set_limit(&self, py: Python<'_>, limit: Option<Count>) -> PyResult<()> {
        self.lock(py)?.rope.set_limit(bounded(limit));
        Ok(())
    }

    /// Appends any contiguous buffer without a copy. O(1). Its owner is kept alive, and exported: a bytearray cannot
    /// be resized meanwhile. What is in it must not be changed until it was sent or dropped. Raises OverflowError if the
    /// rope would hold more than ``sys.maxsize`` bytes.
    fn push(&self, buffer: &Bound<'_, PyAny>) -> PyResult<()> {
        let reserve = |rope: &mut ropewalk::Rope| rope.reserve_segments(1).map_err(|error| plain(&error));
        self.put(buffer, reserve, ropewalk::Rope::push)
    }

    /// Puts any contiguous buffer in front without a copy; as :meth:`push`.
    fn push_front(&self, buffer: &Bound<'_, PyAny>) -> PyResult<()> {
        self.put(buffer, |rope| heap::check(rope.num_segments()), ropewalk::Rope::push_front)
    }

    /// Appends a copy of any contiguous buffer, whatever the limit is. O(its bytes). Consecutive ones are one segment. In a
    /// full pool the copy is on the heap; raises PoolFull if that has no memory either, and the rope is as it was. OverflowError
    /// as for :meth:`push`.
    fn extend(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>) -> PyResult<()> {
        pushed::with_bytes(buffer, |bytes| {
            check_sum(self.__len__(py)?, bytes.len())?;
            self.attempt(py, |rope| rope.try_extend_from_slice(bytes))
        })?
    }

    /// Moves all of ``other`` to the end without a copy; ``other`` is empty then. O(segments of the shorter one).
    /// Raises OverflowError if the rope would hold more than ``sys.maxsize`` bytes; both are as they were then.
    fn append(&self, py: Python<'_>, other: &Bound<'_, Rope>) -> PyResult<()> {
        if std::ptr::eq(self, other.get()) {
            return Err(PyValueError::new_err("a rope cannot be appended to itself; append a slice of it"));
        }
        self.born.check("rope")?;
        let (moved, exports) = other.get().take(py)?;
        let fits = self.changed(py).and_then(|state| {
            check_sum(state.len(), moved.len())?;
            heap::check(state.rope.num_segments().saturating_add(moved.num_segments()))?;
            Ok(state)
        });
        match fits {
            Ok(mut state) => {
                self.exports.append(exports);
                state.rope.append(moved);
                Ok(())
            }
            Err(error) => {
                other.get().put_back(py, moved, exports)?;
                Err(error)
            }
        }
    }

    /// Takes the first ``n`` bytes off as a rope of their own, without a copy. O(its segments). IndexError if there are
    /// fewer.
    fn split_to(&self, py: Python<'_>, n: Count) -> PyResult<Rope> {
        let n = n.0;
        let mut state = self.changed(py)?;
        self.within("split_to", n, state.rope.len())?;
        heap::check(state.rope.num_segments().min(n))?;
        let front = state.rope.split_to(n);
        let exports = self.exports.of(py, front.chunks());
        state.tidy();
        drop(state);
        self.sweep(py);
        Ok(Rope::of(front, exports))
    }

    /// Drops the first ``count`` bytes; pages that are used up are free at once. O(segments dropped).
    /// IndexError if there are fewer.
    fn advance(&self, py: Python<'_>, count: Count) -> PyResult<()> {
        let count = count.0;
        let mut state = self.changed(py)?;
        self.within("advance", count, state.rope.len())?;
        state.rope.advance(count);
        state.tidy();
        drop(state);
        self.sweep(py);
        Ok(())
    }

    /// Returns the position of the first ``needle``, a buffer or a byte, at or after ``start``, across segments; None if
    /// there is none. O(len); nothing is copied.
    #[pyo3(signature = (needle, start=Count(0)), text_signature = "($self, needle, start=0)")]
    fn find(&self, py: Python<'_>, needle: &Bound<'_, PyAny>, start: Count) -> PyResult<Option<usize>> {
        let needle = view::needle(needle)?;
        self.detached(py, |state| {
            state.settle()?;
            let within = start.0 <= state.rope.len();
            Ok(within.then(|| state.rope.find_from(start.0, &needle)).flatten())
        })
    }

    /// Drops all bytes. O(its segments).
    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        let cleared = self.detached(py, |state| {
            state.clear();
            Ok(())
        });
        self.sweep(py);
        cleared
    }

    /// Makes room for ``nbytes`` more, contiguous: of a payload of known length nothing is copied or mapped in the
    /// end. The pages count as in use at once. Raises PoolFull if the pool has no such run.
    fn reserve(&self, py: Python<'_>, nbytes: Count) -> PyResult<()> {
        self.attempt(py, |rope| rope.reserve(nbytes.0))
    }

    /// Adds room that was granted to a request of :meth:`Pool.wait_for_room`: receiving uses it before the pool has to have
    /// any. ValueError if it was not granted yet, was used already, or is of another pool, which returns it.
    fn add_room(&self, py: Python<'_>, room: &crate::pool::Room) -> PyResult<()> {
        let refused = |why| PyValueError::new_err(why);
        let room = room.take(py)?.ok_or_else(|| refused("the room was not granted, or is used already"))?;
        self.attempt(py, |rope| Ok(rope.add_room(room).is_ok()))?
            .then_some(())
            .ok_or_else(|| refused("the room is of another pool than the rope"))
    }

    /// Takes the first ``n`` bytes off, or all, and returns them as ``bytes``: a copy, O(its bytes). Fewer if
    /// there are fewer. MemoryError without memory for it; nothing is taken then.
    #[pyo3(signature = (n=-1), text_signature = "($self, n=-1)")]
    fn read<'py>(&self, py: Python<'py>, n: isize) -> PyResult<Bound<'py, PyBytes>> {
        loop {
            let count = usize::try_from(n).unwrap_or(usize::MAX).min(self.__len__(py)?);
            let mut taken = false;
            // The copy is made first: without memory for it, nothing is taken.
            let copy = PyBytes::new_with(py, count, |copy| {
                taken = match count {
                    ..MIN_DETACHED => self.settled(py)?.take(copy)?,
                    _ => self.detached(py, |state| state.take(copy))?,
                };
                Ok(())
            })?;
            self.sweep(py);
            if taken {
                return Ok(copy);
            }
        }
    }

    /// Returns the segments as views that share the memory, in order, none of them empty. O(segments).
    fn segments(&self, py: Python<'_>) -> PyResult<Vec<View>> {
        let state = self.settled(py)?;
        heap::check(state.rope.num_segments().saturating_mul(4))?; // of views, which are larger than segments
        Ok(state.rope.segments().map(|bytes| View::part(self.segment(py, bytes))).collect())
    }

    /// readv(2): appends what has arrived, at most ``max`` bytes. Returns how many bytes that were; 0 is the end of
    /// the stream, or ``max`` was 0. One call, straight into the rope's pages, behind an fcntl(2) that tells whether the
    /// descriptor blocks, and a poll(2) if it does: three if it has to wait.
    ///
    /// Raises BlockingIOError when nothing has arrived on a non-blocking descriptor, such as that of a socket with a timeout,
    /// for which :func:`recv_all` waits; LimitExceeded when more has arrived than the limit, PoolFull when the pool has no
    /// room, and what else the kernel reports. The rope is as it was then, nothing was taken from the kernel, and the call
    /// can be repeated. A signal's handler runs while it waits.
    ///
    /// ``sock`` is a descriptor or has ``fileno()``; a TLS socket receives by its own ``recv_into``, and may raise what that
    /// does.
    #[pyo3(signature = (sock, max=None))]
    fn recv_from(this: &Bound<'_, Self>, sock: &Bound<'_, PyAny>, max: Option<Count>) -> PyResult<usize> {
        let (py, max) = (this.py(), max.map_or(usize::MAX, |max| max.0));
        let fd = Fd::of(sock)?;
        if let Some(sock) = fd.encrypted()? {
            return recv_encrypted(this, sock, max);
        }
        let source = fd.borrow();
        fd.when_ready(libc::POLLIN, |ready| {
            this.get().attempt(py, |rope| ready.attempt(|| rope.readv_up_to(source, max)))
        })
    }

    /// sendmsg(2), or writev(2) for what is no socket: sends from the front. What was sent leaves the rope, and its
    /// pages are free. Returns how many bytes that were; 0 only if the rope is empty. Errors as for :meth:`Cursor.send`.
    fn send_to(&self, sock: &Bound<'_, PyAny>) -> PyResult<usize> {
        send::send(self, sock)
    }

    /// recvmsg(2): as :meth:`recv_from` on a socket, with the descriptors that came beside the bytes. Returns
    /// ``(nbytes, fds, truncated)``; the descriptors are close-on-exec, and yours to close. With ``MSG_DONTWAIT`` among ``flags``
    /// a blocking socket is not waited for.
    #[pyo3(signature = (sock, flags=0))]
    fn recvmsg(
        &self,
        py: Python<'_>,
        sock: &Bound<'_, PyAny>,
        flags: i32,
    ) -> PyResult<(usize, Vec<i32>, bool)> {
        let fd = Fd::of(sock)?;
        fd.refuse_encrypted()?;
        let source = fd.borrow();
        let received = fd.when_ready(libc::POLLIN, |ready| {
            self.attempt(py, |rope| ready.without_waiting(flags, |flags| rope.recvmsg_from(source, flags)))
        })?;
        let fds = received.fds.into_iter().map(IntoRawFd::into_raw_fd).collect();
        Ok((received.bytes, fds, received.truncated))
    }

    /// sendmsg(2): as :meth:`send_to` on a socket, with descriptors beside the bytes; they go with the first byte. ``flags``
    /// as for :meth:`recvmsg`.
    #[pyo3(signature = (sock, fds=Vec::new(), flags=0))]
    fn sendmsg(&self, sock: &Bound<'_, PyAny>, fds: Vec<Bound<'_, PyAny>>, flags: i32) -> PyResult<usize> {
        send::sendmsg(self, sock, &fds, flags)
    }

    /// Returns a cursor over the rope as it is now: for sending it from an offset, again, or to many. O(segments) after a
    /// change of the rope, else O(1), and O(segments) where objects were pushed that the garbage collector tracks.
    #[pyo3(signature = (position=Count(0)), text_signature = "($self, position=0)")]
    fn cursor(&self, py: Python<'_>, position: Count) -> PyResult<Cursor> {
        let mut state = self.settled(py)?;
        let State { snapshot, rope, .. } = &mut *state;
        if snapshot.is_none() {
            heap::check(rope.num_segments())?;
        }
        let exports = self.exports.of(py, rope.chunks());
        let snapshot = Arc::clone(snapshot.get_or_insert_with(|| Arc::new(rope.clone())));
        drop(state);
        Cursor::new(snapshot, exports, position.0)
    }

    /// Returns all bytes as one contiguous, read-only :class:`View`; the rope is empty then.
    ///
    /// What is contiguous, as a rope that is alone in its pool or was reserved does, is borrowed; what does not is given a
    /// second address, a system call a run; only short pieces, and buffers that were pushed, are copied. Raises PoolFull or
    /// MemoryError when there is no memory for the copies; the rope is as it was then.
    fn finalize(&self, py: Python<'_>) -> PyResult<View> {
        let (rope, exports) = self.take(py)?;
        let context = Context::of(&rope);
        if let Err(error) = heap::check(rope.num_segments()) {
            self.put_back(py, rope, exports)?;
            return Err(error);
        }
        match py.detach(|| rope.finalize()) {
            Ok(view) => {
                let view = View::of(py, view, &exports);
                pushed::release(py);
                Ok(view)
            }
            Err(error) => {
                let short = io::Error::new(ErrorKind::OutOfMemory, error.to_string());
                self.put_back(py, error.into_rope(), exports)?;
                Err(context.raise(py, &short))
            }
        }
    }

    /// Lends room behind the rope's bytes as a writable memoryview, for ``recv_into`` and the like: what
    /// ``asyncio.BufferedProtocol.get_buffer`` is to return. Say how much was written by :meth:`buffer_updated`.
    ///
    /// Asked again without that, it is the same room. What is in it before it is written is old. An export that is still
    /// kept when the bytes are read from the rope could change them: then the rope reads a copy. Where the limit or the pool
    /// refuses more, the room is of one byte, and :attr:`refused` says why.
    #[pyo3(signature = (sizehint=-1), text_signature = "($self, sizehint=-1)")]
    fn get_buffer<'py>(this: &Bound<'py, Self>, sizehint: isize) -> PyResult<Bound<'py, PyMemoryView>> {
        let (py, rope) = (this.py(), this.get());
        let mut state = rope.lock(py)?;
        if state.lending.is_short() {
            let hint = usize::try_from(sizehint).unwrap_or(0).min(MAX_HINT);
            if let Err(error) = state.lend(hint) {
                let context = state.context();
                drop(state);
                return Err(context.raise(py, &error));
            }
        }
        let loan = state.lending.loan();
        drop(state);
        PyMemoryView::from(Bound::new(py, Tail(loan))?.as_any())
    }

    /// Appends the first ``nbytes`` of the room that :meth:`get_buffer` gave, without a copy. Returns how many bytes
    /// the rope holds.
    fn buffer_updated(&self, py: Python<'_>, nbytes: Count) -> PyResult<usize> {
        let nbytes = nbytes.0;
        let mut state = self.lock(py)?;
        if let Err(room) = state.lending.fill(nbytes) {
            drop(state);
            return Err(PyValueError::new_err(format!(
                "{nbytes} bytes are beyond the {room} that were lent"
            )));
        }
        Ok(state.len())
    }

    /// Why the last room was of one byte, LimitExceeded or PoolFull; None if it was not.
    #[getter]
    fn refused(&self, py: Python<'_>) -> PyResult<Option<PyErr>> {
        let state = self.lock(py)?;
        let Some(error) = &state.refused else { return Ok(None) };
        let (context, error) = (state.context(), io::Error::new(error.kind(), error.to_string()));
        drop(state);
        Ok(Some(context.raise(py, &error)))
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.lock(py)?.len())
    }

    fn __getitem__(&self, at: &Bound<'_, PyAny>) -> PyResult<Rope> {
        let py = at.py();
        let slice = at.cast::<PySlice>().map_err(|_| PyTypeError::new_err("a rope is sliced: rope[a:b]"))?;
        let range = view::range(slice, self.__len__(py)?)?;
        let state = self.settled(py)?;
        let to = range.end.min(state.rope.len());
        let from = range.start.min(to);
        heap::check(state.rope.num_segments().min(to - from))?;
        let part = state.rope.slice(from..to);
        let exports = self.exports.of(py, part.chunks());
        Ok(Rope::of(part, exports))
    }

    fn __contains__(&self, py: Python<'_>, needle: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(self.find(py, needle, Count(0))?.is_some())
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let (all, _exports) = self.all(py)?;
        let copy = PyBytes::new_with(py, all.len(), |copy| {
            py.detach(|| all.cursor().copy_to_slice(copy));
            Ok(())
        });
        drop(all);
        pushed::release(py);
        copy
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let py = other.py();
        let (ours, _exports) = self.all(py)?;
        let equal = match other.cast::<Rope>() {
            Ok(other) => {
                let (theirs, _exports) = other.get().all(py)?;
                Ok(ours == theirs)
            }
            Err(_) => pushed::with_bytes(other, |other| ours == *other),
        };
        drop(ours);
        pushed::release(py);
        match equal {
            Ok(equal) => Ok(equal.into_pyobject(py)?.to_owned().into_any().unbind()),
            Err(_no_buffer) => Ok(py.NotImplemented()),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.exports.traverse(&visit)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let state = self.lock(py)?;
        Ok(format!("<ropewalk.Rope of {} bytes in {} segments>", state.len(), state.rope.num_segments()))
    }
}

/// Receives by a TLS socket's own `recv_into`, into the rope's room.
fn recv_encrypted(this: &Bound<'_, Rope>, sock: &Bound<'_, PyAny>, max: usize) -> PyResult<usize> {
    let (py, rope) = (this.py(), this.get());
    if max == 0 {
        return Ok(0);
    }
    let room = Rope::get_buffer(this, -1)?;
    if let Some(refused) = rope.refused(py)? {
        // One byte beyond the limit has to be received to tell more from the end; it is kept, and no second one taken.
        let beyond = rope.limit(py)?.is_some_and(|limit| limit < rope.__len__(py).unwrap_or(0));
        if beyond || refused.is_instance_of::<PoolFull>(py) {
            return Err(refused);
        }
    }
    let count = room.len()?.min(max);
    let args = (&room, count).into_pyobject(py)?;
    let received = attach::call(&sock.getattr(intern!(py, "recv_into"))?, &args);
    room.call_method0(intern!(py, "release"))?;
    if received.is_err() {
        drop(rope.settled(py)?); // an empty rope holds no page
    }
    let received = received?.extract::<usize>()?;
    rope.buffer_updated(py, Count(received))?;
    match rope.refused(py)? {
        Some(refused) if received > 0 => Err(refused),
        _ => Ok(received),
    }
}

impl Source for Rope {
    type Outgoing = ropewalk::Rope;

    fn attempt<R: Send>(
        &self,
        py: Python<'_>,
        send: impl FnOnce(&mut ropewalk::Rope) -> io::Result<R> + Send,
    ) -> PyResult<R> {
        Rope::attempt(self, py, send)
    }

    fn next(&self, py: Python<'_>) -> PyResult<Option<Segment>> {
        let state = self.settled(py)?;
        Ok(state.rope.segments().next().map(|bytes| self.segment(py, bytes)))
    }

    fn sent(&self, py: Python<'_>, sent: usize) -> PyResult<()> {
        Rope::attempt(self, py, |rope| {
            rope.advance(sent.min(rope.len()));
            Ok(())
        })
    }
}
