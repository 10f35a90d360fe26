"""asyncio's streams over ropes: the names people know, and ``read_view``.

What arrives is read straight into the rope of a :class:`StreamReader`, by asyncio's own loop or uvloop's, plain
or through TLS. ``await reader.read_view()`` is the whole payload as one :class:`ropewalk.View`, at a peak of one
times its size.

Every read is cancel safe: bytes leave the rope only when they are returned.

Reading pauses while 256 KiB wait and no task reads; while the pool is full, until there is room; and beyond
``limit``, which is a hard one here: :exc:`ropewalk.LimitExceeded`. asyncio's own ``limit`` is not.
"""

import asyncio
import sys
import weakref
from asyncio import IncompleteReadError
from collections import deque

from ._ropewalk import LimitExceeded, PoolFull, Rope, View, default_pool

__all__ = [
    "IncompleteReadError",
    "LimitOverrunError",
    "StreamReader",
    "StreamWriter",
    "open_connection",
    "open_unix_connection",
    "start_server",
    "start_unix_server",
]

# Bytes that are read ahead while no task waits for them.
_AHEAD = 256 << 10

# Bytes of ropes that a transport is given at a time: beyond its high-water mark it copies, in CPython 3.11, or
# holds pages.
_STEP = 256 << 10

_EVERYTHING = sys.maxsize


class LimitOverrunError(LimitExceeded, asyncio.LimitOverrunError, ValueError):
    """Raised when a separator does not come within the limit. It is a LimitExceeded, and what programs for asyncio
    catch: :exc:`asyncio.LimitOverrunError` from ``readuntil``, ValueError from ``readline``.

    Attributes: consumed, how many bytes are in front of the separator, as far as it has come; limit and held (bytes).
    """

    def __init__(self, message, consumed, limit=None, held=None):
        super().__init__(message)
        self.consumed, self.limit, self.held = consumed, limit, held

    def __reduce__(self):
        return type(self), (str(self), self.consumed, self.limit, self.held)


async def open_connection(host=None, port=None, pool=None, limit=None, ssl=None, **options):
    """Connects by ``loop.create_connection``; returns a :class:`StreamReader` and a :class:`StreamWriter`."""
    return await _connect("create_connection", (host, port), pool, limit, ssl=ssl, **options)


async def open_unix_connection(path=None, pool=None, limit=None, ssl=None, **options):
    """Connects by ``loop.create_unix_connection``; as :func:`open_connection`."""
    return await _connect("create_unix_connection", (path,), pool, limit, ssl=ssl, **options)


async def start_server(client_connected, host=None, port=None, pool=None, limit=None, ssl=None, **options):
    """Listens by ``loop.create_server``. ``client_connected(reader, writer)`` is called for each connection; if
    it is a coroutine function, as a task. All connections share ``pool``."""
    return await _serve("create_server", client_connected, (host, port), pool, limit, ssl=ssl, **options)


async def start_unix_server(client_connected, path=None, pool=None, limit=None, ssl=None, **options):
    """Listens by ``loop.create_unix_server``; as :func:`start_server`."""
    return await _serve("create_unix_server", client_connected, (path,), pool, limit, ssl=ssl, **options)


async def _connect(create, address, pool, limit, **options):
    loop = asyncio.get_running_loop()
    protocol = _Protocol(StreamReader(pool, limit, loop), None, loop, bool(options["ssl"]))
    transport, _ = await getattr(loop, create)(lambda: protocol, *address, **options)
    return protocol.reader, StreamWriter(transport, protocol, protocol.reader, loop)


async def _serve(create, client_connected, address, pool, limit, **options):
    loop = asyncio.get_running_loop()
    pool = StreamReader(pool, limit, loop)._pool  # what is wrong with either is told now, not to each connection

    def protocol():
        return _Protocol(StreamReader(pool, limit, loop), client_connected, loop, bool(options["ssl"]))

    return await getattr(loop, create)(protocol, *address, **options)


class StreamReader(asyncio.StreamReader):
    """Reads from a connection into a rope. The methods are asyncio's, and :meth:`read_view`."""

    # Does not call asyncio's own: only its method names are used.
    def __init__(self, pool=None, limit=None, loop=None):
        self._pool = default_pool() if pool is None else pool
        self._rope = Rope(self._pool, limit)
        self._limit = _EVERYTHING if limit is None else limit
        self._ahead = min(self._limit, _AHEAD)
        self._loop = loop or asyncio.get_running_loop()
        self._transport = None
        self._paused = False
        self._eof = False
        self._exception = None
        # The future of the waiting read, and how many bytes complete it.
        self._waiter = None
        self._need = 0

    async def read_view(self, n=-1):
        """Reads ``n`` bytes, or all up to the end of the stream, as one :class:`ropewalk.View`: fewer than ``n`` only
        if the stream ends before. Copies no bytes but the view's ``copied_bytes``. Raises :exc:`PoolFull` if the
        system has no memory for the view; the bytes stay in the reader then."""
        rope = self._rope
        count = _EVERYTHING if n < 0 else n
        if len(rope) < count:
            await self._wait(self._needed(count))
        view = _take_view(rope, min(count, len(rope)))
        self._go_on()
        return view

    async def read(self, n=-1):
        """Reads up to ``n`` bytes, as soon as there are any, or all up to the end of the stream. Returns a copy as
        ``bytes``; ``b""`` is the end of the stream."""
        rope = self._rope
        if n != 0 and (n < 0 or not rope):
            await self._wait(_EVERYTHING if n < 0 else 1)
        data = rope.read(n)
        self._go_on()
        return data

    async def readexactly(self, n):
        """Reads ``n`` bytes. Returns a copy as ``bytes``. Raises :exc:`asyncio.IncompleteReadError`, with the bytes
        that came, if the stream ends before."""
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        rope = self._rope
        if len(rope) < n:
            await self._wait(self._needed(n))
            if len(rope) < n:
                raise IncompleteReadError(rope.read(), n)
        data = rope.read(n)
        if self._paused:
            self._go_on()
        return data

    async def readuntil(self, separator=b"\n"):
        """Reads up to and including ``separator``, or the first to come of a tuple of separators. Returns a copy as
        ``bytes``. Searches each byte once, however many pieces arrive.

        Raises :exc:`asyncio.IncompleteReadError` if the stream ends before, and :exc:`LimitOverrunError` if
        the separator does not end within the limit; the bytes stay in the reader then."""
        separators = separator if isinstance(separator, tuple) else (separator,)
        if not separators or not all(map(len, separators)):
            raise ValueError("Separator should be at least one-byte string")
        rope, seen, longest = self._rope, 0, max(map(len, separators))
        while True:
            start, end = _first(rope, separators, max(0, seen - longest + 1))
            if end is not None and end <= self._limit:
                break
            seen = len(rope)
            if end is not None or seen > self._limit:
                message = f"no separator in {self._limit} bytes, the limit; what has arrived is kept"
                consumed = max(0, seen - longest + 1) if start is None else start
                raise LimitOverrunError(message, consumed, self._limit, seen)
            await self._wait(seen + 1)
            if len(rope) == seen:
                raise IncompleteReadError(rope.read(), None)
        data = rope.read(end)
        self._go_on()
        return data

    async def readline(self):
        """Reads a line with its ``\\n``, which the last line of a stream may lack. Raises :exc:`LimitOverrunError`, a
        ValueError as asyncio's, for a line longer than the limit; its bytes stay in the reader, which asyncio drops."""
        try:
            return await self.readuntil(b"\n")
        except IncompleteReadError as error:
            return error.partial

    def __aiter__(self):
        return self

    async def __anext__(self):
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    def at_eof(self):
        """Returns True if the stream has ended and everything was read."""
        return self._eof and not self._rope

    def feed_data(self, data):
        """Appends a copy of ``data``, as if it had come from the connection, whatever the limit is. Pauses the
        transport when 256 KiB, or the limit, wait."""
        self._rope.extend(data)
        if self._waiter is None and len(self._rope) >= self._ahead:
            self._pause()
        self._wake()

    def feed_eof(self):
        """Ends the stream."""
        self._eof = True
        self._wake()

    def set_exception(self, exc):
        """Ends the stream by an error, which is raised once all bytes that have arrived are read."""
        self._exception = exc
        self._wake()

    def set_transport(self, transport):
        """Sets the transport that reading pauses and resumes."""
        self._transport, self._paused = transport, False

    def exception(self):
        """Returns the error that ended the connection, or None."""
        return self._exception

    def __repr__(self):
        state = "ended" if self._eof else "paused" if self._paused else "reading"
        return f"<ropewalk.asyncio.StreamReader {state}, {len(self._rope)} bytes>"

    def _needed(self, count):
        """Returns how many bytes to wait for to read ``count``. Beyond the limit only one byte arrives, which shows
        that there are more: waiting for all of them is what raises."""
        return count if count <= self._limit else _EVERYTHING

    async def _wait(self, need):
        """Waits until ``need`` bytes are there, or the stream has ended."""
        if self._waiter is not None:
            raise RuntimeError("another coroutine is already waiting for this reader")
        rope = self._rope
        while len(rope) < need and not self._eof:
            if self._exception is not None:
                raise self._exception
            if len(rope) > self._limit:
                if rope.refused is None:
                    rope.get_buffer().release()  # what is beyond was fed: to ask for room is what is refused
                raise rope.refused
            if isinstance(rope.refused, PoolFull):
                await self._wait_for_room(need)
                if self._is_over(need):
                    continue
            self._resume()
            self._need = need
            await self._woken()

    def _is_over(self, need):
        """Returns True if there is nothing to wait for."""
        return self._eof or self._exception is not None or len(self._rope) >= need

    async def _woken(self, fd=None):
        """Waits until :meth:`_wake` is called, or ``fd`` is readable."""
        self._waiter = self._loop.create_future()
        if fd is not None:
            self._loop.add_reader(fd, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if fd is not None:
                self._loop.remove_reader(fd)

    async def _wait_for_room(self, need):
        """Waits until the pool has room, or there is nothing to wait for any more. Raises PoolFull if the waiting
        readers hold all of the pool, so that none would ever get room."""
        waiting = _WAITING.setdefault(self._pool, set())
        waiting.add(self)
        room = self._pool.wait_for_room()
        try:
            while not room.ready():
                if _holds_all(waiting, self._pool):
                    raise self._rope.refused
                await self._woken(room.fileno())
                if self._is_over(need):
                    return
            self._rope.add_room(room)
        finally:
            waiting.discard(self)
            del room  # leaves the queue, even if a traceback keeps this frame

    def _buffer_updated(self, nbytes):
        held = self._rope.buffer_updated(nbytes)
        # A rope that may take no more lends one byte.
        refused = nbytes == 1 and self._rope.refused is not None
        if refused or (self._waiter is None and held >= self._ahead):
            self._pause()
        if self._waiter is not None and (refused or held >= self._need):
            self._wake()

    def _lend_to_tls(self, sizehint):
        """Lends room for a TLS record. asyncio asks for each record, also for one that is incomplete or holds
        no data."""
        if not self._rope:
            self._loop.call_soon(self._take_back)
        return self._rope.get_buffer(sizehint)

    def _take_back(self):
        """Takes lent room back if nothing was written to it."""
        if not self._rope:
            self._rope.read(0)

    def _wake(self):
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _pause(self):
        if not self._paused and self._transport is not None:
            self._transport.pause_reading()
            self._paused = True

    def _resume(self):
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def _go_on(self):
        """Resumes reading ahead after bytes were taken."""
        if self._paused and len(self._rope) < self._ahead and not isinstance(self._rope.refused, PoolFull):
            self._resume()


# The readers that wait for room, by pool.
_WAITING = weakref.WeakKeyDictionary()


def _holds_all(waiting, pool):
    """Returns True if the pool is full and the waiting readers hold all of it, but for pages that may be partly filled.
    Another thread's loop may add readers meanwhile."""
    stats = pool.stats()
    others = stats.in_use - sum(len(reader._rope) for reader in tuple(waiting))
    return stats.in_use > stats.capacity // 2 and others <= stats.in_use // 8


def _take_view(rope, count):
    """Takes the first bytes off as a view. Without memory for the view, the rope is as it was."""
    first = rope.split_to(count)
    try:
        return first.finalize()
    except BaseException:
        first.append(rope)
        rope.append(first)
        raise


def _bytes_of(buffer):
    """Returns any contiguous buffer as a memoryview of bytes: loops count items instead, and refuse some buffers only
    after they have sent a part."""
    rope = Rope()
    rope.push(buffer)
    return memoryview(rope.finalize())


def _first(rope, separators, start):
    """Returns where the first complete separator starts and ends."""
    found = ((rope.find(separator, start), len(separator)) for separator in separators)
    found = ((at, at + length) for at, length in found if at is not None)
    return min(found, key=lambda span: span[1], default=(None, None))


class StreamWriter(asyncio.StreamWriter):
    """Writes buffers, as asyncio's, and ropes and views, which are neither joined nor copied."""

    def write(self, data):
        """Sends any contiguous buffer, or a :class:`ropewalk.Rope` as it is now: the rope keeps its bytes, and their
        pages are held until they are sent. ``bytes`` and views of any length are not copied. Raises TypeError or
        BufferError for any other object, before anything is sent."""
        if isinstance(data, Rope):
            self._protocol.queue(data[:])
            return
        if not isinstance(data, (bytes, bytearray, View)):
            data = _bytes_of(data)
        if self._protocol.out or (len(data) > _STEP and isinstance(data, bytes)) or isinstance(data, View):
            rope = Rope()
            rope.push(data if isinstance(data, (bytes, View)) else bytes(data))
            self._protocol.queue(rope)
        else:
            self._transport.write(data)

    def writelines(self, data):
        """Sends buffers and ropes, one after the other."""
        for piece in data:
            self.write(piece)

    def write_eof(self):
        """Shuts the sending direction down once everything written is sent. Raises NotImplementedError through TLS,
        which has no half-close."""
        if self.can_write_eof():
            self._protocol.behind("write_eof")
        else:
            self._transport.write_eof()

    async def start_tls(self, sslcontext, **options):
        """Upgrades the connection to TLS. Raises RuntimeError if bytes have arrived that were not read: they came
        unencrypted, so anybody may have sent them."""
        self._reader._pause()
        await self.drain()
        if waiting := len(self._reader._rope):
            self._reader._go_on()
            raise RuntimeError(f"{waiting} bytes arrived before TLS: read them first, or close the connection")
        self._protocol.set_over_ssl(True)
        await super().start_tls(sslcontext, **options)

    def close(self):
        """Closes once everything written is sent. To end TLS, all that was sent by the other end has to be read
        first: where a full pool has no room for it and nothing is left to be sent, the connection is aborted,
        as the kernel does with one that is closed with bytes unread."""
        refused = isinstance(self._reader._rope.refused, PoolFull)
        if refused and not self._protocol.out and not self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._protocol.behind("close")

    def is_closing(self):
        """Returns True if the connection is closed, or will be once everything written is sent."""
        return self._protocol.then == "close" or self._transport.is_closing()


class _Protocol(asyncio.BufferedProtocol):
    """Lends the rope's room to the loop, gives the transport what was written, and wakes drains. Holds no reference to
    a client's writer, whose finalizer closes a forgotten connection."""

    def __init__(self, reader, client_connected, loop, over_ssl):
        self.reader, self.transport = reader, None
        # Bytes not given to the transport yet, and the method of the transport to call after them.
        self.out, self.then = None, None
        self.writing_paused = False
        self._client_connected_cb = client_connected
        self._loop = loop
        self._task = self._writer = None
        self._lost = False
        self._drains = deque()
        self._closed = loop.create_future()
        # The loop calls the rope directly, without a Python frame.
        self.buffer_updated = reader._buffer_updated
        self.set_over_ssl(over_ssl)

    def connection_made(self, transport):
        self._replace_transport(transport)
        if self._client_connected_cb is not None:
            self._writer = StreamWriter(transport, self, self.reader, self._loop)
            made = self._client_connected_cb(self.reader, self._writer)
            if asyncio.iscoroutine(made):
                self._task = self._loop.create_task(made)
                self._task.add_done_callback(self._served)

    def _served(self, task):
        self._task = None
        failed = task.cancelled() or task.exception() is not None
        if failed and self.transport is not None:
            self.transport.close()
        if not task.cancelled() and task.exception() is not None:
            self._loop.call_exception_handler({
                "message": "Unhandled exception in client_connected_cb",
                "exception": task.exception(),
                "transport": self.transport,
            })

    def queue(self, rope):
        """Queues a rope behind what waits, also after a close that waits: as asyncio's transports do."""
        if self.then == "write_eof":
            raise RuntimeError("Cannot call write() after write_eof()")
        if self.out is None:
            self.out = Rope()
        self.out.append(rope)
        self._pump()

    def behind(self, end):
        """Calls a method of the transport once everything queued was given to it."""
        if self.out and not self.transport.is_closing():
            self.then = end if self.then is None else "close"
        elif self.transport is not None:
            getattr(self.transport, end)()

    def _pump(self):
        """Gives queued bytes to the transport until it pauses writing."""
        out = self.out
        while out and not self.writing_paused:
            if self.transport is None or self.transport.is_closing():
                out.clear()
                return
            pieces = [memoryview(view) for view in out.split_to(min(len(out), _STEP)).segments()]
            if len(pieces) > 1:
                self.transport.writelines(pieces[:-1])
            # Behind writelines alone, CPython up to 3.12.8 and 3.13.1 does not pause writing.
            self.transport.write(pieces[-1])
        if not out and self.then is not None:
            end, self.then = self.then, None
            getattr(self.transport, end)()

    def get_buffer(self, sizehint):
        return self.reader._rope.get_buffer(sizehint)

    def buffer_updated(self, nbytes):
        self.reader._buffer_updated(nbytes)

    def set_over_ssl(self, over_ssl):
        """Chooses how room is lent. Called before the loop wraps this protocol for TLS, which looks methods up once."""
        self._over_ssl = over_ssl
        self.get_buffer = self.reader._lend_to_tls if over_ssl else self.reader._rope.get_buffer

    def eof_received(self):
        self.reader._take_back()
        self.reader.feed_eof()
        return not self._over_ssl

    def connection_lost(self, exception):
        self._lost = True
        self.reader.feed_eof() if exception is None else self.reader.set_exception(exception)
        if not self._closed.done():
            self._closed.set_result(None) if exception is None else self._closed.set_exception(exception)
        self._closed.exception() if not self._closed.cancelled() else None
        for drain in self._drains:
            if not drain.done():
                drain.set_result(None) if exception is None else drain.set_exception(exception)
        if self.out:
            self.out.clear()
        # Without a cycle, pages go back when the last user of the reader is gone.
        self._replace_transport(None)
        self._writer = None
        del self.get_buffer, self.buffer_updated

    def pause_writing(self):
        self.writing_paused = True

    def resume_writing(self):
        self.writing_paused = False
        self._pump()
        if not self.writing_paused:
            for drain in self._drains:
                if not drain.done():
                    drain.set_result(None)

    # asyncio.StreamWriter calls these.

    async def _drain_helper(self):
        if self._lost:
            raise ConnectionResetError("Connection lost")
        if not self.writing_paused:
            return
        drain = self._loop.create_future()
        self._drains.append(drain)
        try:
            await drain
        finally:
            self._drains.remove(drain)

    def _get_close_waiter(self, _stream):
        # A caller that is cancelled must not cancel the future for the others that wait for it.
        return asyncio.shield(self._closed)

    def _replace_transport(self, transport):
        self.transport = transport
        self.reader.set_transport(transport)

    def _replace_writer(self, writer):
        self._replace_transport(writer.transport)
