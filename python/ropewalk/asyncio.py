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


class LimitOverrunError(LimitExceeded, asyncio.LimitOverrunError):
    """A separator did not come within the reader's limit: what asyncio's users catch, and a LimitExceeded.

    Attributes: consumed, how many bytes are in front of the separator, as far as it has come; limit and held (bytes).
    """

    def __init__(self, message, consumed, limit=None, held=None):
        super().__init__(message)
        self.consumed, self.limit, self.held = consumed, limit, held

    def __reduce__(self):
        return type(self), (str(self), self.consumed, self.limit, self.held)


async def open_connection(host=None, port=None, *, pool=None, limit=None, ssl=None, **options):
    """Connects by ``loop.create_connection``; returns a :class:`StreamReader` and a :class:`StreamWriter`."""
    return await _connect("create_connection", (host, port), pool, limit, ssl=ssl, **options)


async def open_unix_connection(path=None, *, pool=None, limit=None, ssl=None, **options):
    """Connects by ``loop.create_unix_connection``; as :func:`open_connection`."""
    return await _connect("create_unix_connection", (path,), pool, limit, ssl=ssl, **options)


async def start_server(client_connected, host=None, port=None, *, pool=None, limit=None, ssl=None, **options):
    """Listens by ``loop.create_server``. ``client_connected(reader, writer)`` is called for each connection; if
    it is a coroutine function, as a task. All connections share ``pool``."""
    return await _serve("create_server", client_connected, (host, port), pool, limit, ssl=ssl, **options)


async def start_unix_server(client_connected, path=None, *, pool=None, limit=None, ssl=None, **options):
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

    # asyncio's own is not called: of it nothing is used but the names.
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
        # Who waits, and how many bytes have to be there first.
        self._waiter = None
        self._need = 0

    async def read_view(self, n=-1):
        """The next ``n`` bytes, or all up to the end of the stream, as one :class:`ropewalk.View`: fewer than
        ``n`` only if the stream ends before. Nothing is copied, but what ``View.copied_bytes`` says. Raises
        :exc:`PoolFull` if the system has no memory for the view; then all of it stays, to be read otherwise."""
        rope = self._rope
        count = _EVERYTHING if n < 0 else n
        if len(rope) < count:
            await self._wait(count)
        view = _take_view(rope, min(count, len(rope)))
        self._go_on()
        return view

    async def read(self, n=-1):
        """Up to ``n`` bytes, as soon as there are any, or all up to the end of the stream, as ``bytes``: a copy
        beside the rope. ``b""`` is the end of the stream."""
        rope = self._rope
        if n != 0 and (n < 0 or not rope):
            await self._wait(_EVERYTHING if n < 0 else 1)
        data = rope.read(n)
        self._go_on()
        return data

    async def readexactly(self, n):
        """``n`` bytes, as ``bytes``. Raises :exc:`asyncio.IncompleteReadError`, with what there was, if the
        stream ends before."""
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        rope = self._rope
        if len(rope) < n:
            await self._wait(n)
            if len(rope) < n:
                raise IncompleteReadError(rope.read(), n)
        data = rope.read(n)
        if self._paused:
            self._go_on()
        return data

    async def readuntil(self, separator=b"\n"):
        """All up to and with ``separator``, or the first to come of a tuple of them, as ``bytes``. Each byte is
        looked at once, however many pieces it comes in.

        Raises :exc:`asyncio.IncompleteReadError` if the stream ends before, and :exc:`LimitOverrunError` if
        the separator does not end within the limit; then all of it stays, to be read otherwise."""
        separators = separator if isinstance(separator, tuple) else (separator,)
        if not separators or not all(separators):
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
        """A line, with its ``\\n`` but at the end of the stream. Raises :exc:`LimitOverrunError` for a longer one than
        the limit, of which nothing is dropped, as asyncio does behind its ValueError."""
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
        """Whether the stream has ended and everything was read."""
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
        """Ends the stream by an error, once what has arrived is read."""
        self._exception = exc
        self._wake()

    def set_transport(self, transport):
        """Says what to pause and to resume."""
        self._transport, self._paused = transport, False

    def exception(self):
        """What ended the connection, if it was an error."""
        return self._exception

    def __repr__(self):
        state = "ended" if self._eof else "paused" if self._paused else "reading"
        return f"<ropewalk.asyncio.StreamReader {state}, {len(self._rope)} bytes>"

    async def _wait(self, need):
        """Until ``need`` bytes are there, or the stream has ended."""
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
                await self._wait_for_room()
            self._resume()
            self._need, self._waiter = need, self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def _wait_for_room(self):
        """Until the pool has some. Raises PoolFull if the waiters hold all of it, so that none ever will."""
        waiting = _WAITING.setdefault(self._pool, set())
        waiting.add(self)
        room = self._pool.wait_for_room()
        try:
            while not room.ready():
                if _holds_all(waiting, self._pool):
                    raise self._rope.refused
                await _readable(self._loop, room.fileno())
            self._rope.add_room(room)
        finally:
            waiting.discard(self)
            del room  # leaves the queue, even if a traceback keeps this frame

    def _buffer_updated(self, nbytes):
        held = self._rope.buffer_updated(nbytes)
        # Where the rope may take no more, one byte is all that it lends.
        refused = nbytes == 1 and self._rope.refused is not None
        if refused or (self._waiter is None and held >= self._ahead):
            self._pause()
        if self._waiter is not None and (refused or held >= self._need):
            self._wake()

    def _lend_to_tls(self, sizehint):
        """Room for what arrives. TLS asks for it for each record, whether or not that is complete, or data."""
        if not self._rope:
            self._loop.call_soon(self._take_back)
        return self._rope.get_buffer(sizehint)

    def _take_back(self):
        """Takes room back to which nothing was written."""
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
        """Reads ahead again, now that something was taken."""
        if self._paused and len(self._rope) < self._ahead and not isinstance(self._rope.refused, PoolFull):
            self._resume()


# Which readers wait for each pool's room.
_WAITING = weakref.WeakKeyDictionary()


def _holds_all(waiting, pool):
    """Whether the pool is full and the waiters hold all of it, but for what may be pages partly filled.
    Another thread's loop may add to them meanwhile."""
    stats = pool.stats()
    others = stats.in_use - sum(len(reader._rope) for reader in tuple(waiting))
    return stats.in_use > stats.capacity // 2 and others <= stats.in_use // 8


async def _readable(loop, fd):
    future = loop.create_future()
    loop.add_reader(fd, lambda: future.done() or future.set_result(None))
    try:
        await future
    finally:
        loop.remove_reader(fd)


def _take_view(rope, count):
    """The first bytes as a view. Without memory for it, the rope is as it was."""
    first = rope.split_to(count)
    try:
        return first.finalize()
    except BaseException:
        first.append(rope)
        rope.append(first)
        raise


def _bytes_of(buffer):
    """The bytes of any contiguous buffer: loops count items, and refuse some buffers when it is too late."""
    rope = Rope()
    rope.push(buffer)
    return memoryview(rope.finalize())


def _first(rope, separators, start):
    """Where the first separator to be complete starts and ends."""
    found = ((rope.find(separator, start), len(separator)) for separator in separators)
    found = ((at, at + length) for at, length in found if at is not None)
    return min(found, key=lambda span: span[1], default=(None, None))


class StreamWriter(asyncio.StreamWriter):
    """asyncio's writer, which takes ropes and views too, and sends them without joining or copying them."""

    def write(self, data):
        """Sends any contiguous buffer, or a :class:`ropewalk.Rope` as it is now: the rope is left as it is, and its
        pages are held until they are sent. ``bytes`` and views of any length are not copied. TypeError or BufferError
        for what is no such buffer, before anything of it is sent."""
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
        """Ends what is written, behind all of it. NotImplementedError through TLS, which has no such end."""
        if self.can_write_eof():
            self._protocol.behind("write_eof")
        else:
            self._transport.write_eof()

    async def start_tls(self, sslcontext, **options):
        """Goes on through TLS. RuntimeError if bytes have arrived that were not read: they are not encrypted, and may be
        anybody's."""
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
        """Whether the connection is closed, or is to be once everything written is sent."""
        return self._protocol.then == "close" or self._transport.is_closing()


class _Protocol(asyncio.BufferedProtocol):
    """Hands the rope's room out to the loop, gives the transport what was written, and keeps count of who waits for it.
    It does not refer to the writer of a client, which closes a connection that is forgotten."""

    def __init__(self, reader, client_connected, loop, over_ssl):
        self.reader, self.transport = reader, None
        # What was not given to the transport yet, and what comes behind it.
        self.out, self.then = None, None
        self.writing_paused = False
        self._client_connected_cb = client_connected
        self._loop = loop
        self._task = self._writer = None
        self._lost = False
        self._drains = deque()
        self._closed = loop.create_future()
        # Nothing of Python between the loop and the rope.
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
        """Sends a rope behind what waits."""
        if self.then is not None:
            raise RuntimeError(f"write after {self.then}")
        if self.out is None:
            self.out = Rope()
        self.out.append(rope)
        self._pump()

    def behind(self, end):
        """Calls a method of the transport behind what waits."""
        if self.out and not self.transport.is_closing():
            self.then = end
        elif self.transport is not None:
            getattr(self.transport, end)()

    def _pump(self):
        """Gives the transport as much as it takes before it has to wait."""
        out = self.out
        while out and not self.writing_paused:
            if self.transport is None or self.transport.is_closing():
                out.clear()
                return
            pieces = [memoryview(view) for view in out.split_to(min(len(out), _STEP)).segments()]
            if len(pieces) == 1:
                self.transport.write(pieces[0])
            else:
                self.transport.writelines(pieces)
        if not out and self.then is not None:
            end, self.then = self.then, None
            getattr(self.transport, end)()

    def get_buffer(self, sizehint):
        return self.reader._rope.get_buffer(sizehint)

    def buffer_updated(self, nbytes):
        self.reader._buffer_updated(nbytes)

    def set_over_ssl(self, over_ssl):
        """To be called before the loop makes a TLS protocol of this one, for that asks for these methods once."""
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

    # What asyncio.StreamWriter asks of its protocol.

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
