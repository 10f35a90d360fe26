"""Whole payloads through plain sockets: blocking, with a timeout, or non-blocking and waited for."""

import operator
import select
import ssl
import time

from ._ropewalk import Rope


def recv_all(sock, pool=None, limit=None):
    """Receives until the end of the stream; returns all of it as one :class:`View`.

    ``sock`` is anything with ``fileno()``: a socket, blocking or not, a TLS socket, a pipe. A timeout of the
    socket is one for the whole, but through TLS, where each call waits by itself, it may take up to twice as long. The
    peak of memory is the payload and a few pages.

    Raises :exc:`LimitExceeded` when more than ``limit`` bytes come, :exc:`PoolFull` when the pool has no room, or the
    system no memory for the view, :exc:`TimeoutError`, what the socket reports, or what a signal's handler raises. The
    exception's attribute ``rope`` then has what arrived.
    """
    return _receive(sock, Rope(pool, limit), None)


def recv_exactly(sock, n, pool=None):
    """Receives ``n`` bytes, and leaves what follows them in the socket; returns them as one :class:`View`.

    Their room is set aside first, so that they are contiguous and nothing is copied. Raises as
    :func:`recv_all` does, and :exc:`EOFError` when the stream ends before; ``rope`` has what arrived.
    """
    rope, n = Rope(pool), operator.index(n)
    try:
        rope.reserve(n)
    except MemoryError:
        pass  # as much may be there in shorter runs
    return _receive(sock, rope, n)


def send_all(sock, rope):
    """Sends all of a :class:`Rope`, which is empty then, of a :class:`Cursor`, or of any buffer.

    After an exception the rope, or the cursor, is exactly what was not sent. A timeout of the socket is one for
    the whole, as for :func:`recv_all`.
    """
    if not hasattr(rope, "send_to"):
        buffer, rope = rope, Rope()
        rope.push(buffer)
    left = (lambda: len(rope)) if isinstance(rope, Rope) else (lambda: rope.remaining)
    wait = _Wait(sock, select.POLLOUT)
    while left():
        wait.call(rope.send_to, sock)


def _receive(sock, rope, n):
    """Receives ``n`` bytes, or all; sets ``rope`` on any exception."""
    try:
        wait = _Wait(sock, select.POLLIN)
        while n is None or len(rope) < n:
            if not wait.call(rope.recv_from, sock, None if n is None else n - len(rope)):
                break
        if n is not None and len(rope) < n:
            raise EOFError(f"the stream ended after {len(rope)} of {n} bytes")
        return rope.finalize()
    except BaseException as error:
        error.rope = rope
        raise


class _Wait:
    """Waits for a descriptor by poll(2), for no longer than the socket's timeout in all."""

    def __init__(self, sock, events):
        self._sock, self._events = sock, events
        # A timeout of 0 marks a non-blocking socket; these functions wait for it all the same.
        self._timeout = getattr(sock, "gettimeout", lambda: None)() or None
        self._started = time.monotonic()

    def call(self, call, *args):
        while True:
            left = self._left()  # also asked if the peer is never waited for
            try:
                return call(*args)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                poll = select.poll()
                poll.register(self._sock, _events(error, self._events))
                poll.poll(left)

    def _left(self):
        """Returns the milliseconds until the timeout, or None without one. Raises TimeoutError after it."""
        if self._timeout is None:
            return None
        left = self._started + self._timeout - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"timed out after {self._timeout} s, the socket's timeout")
        return left * 1000


def _events(error, usual):
    if isinstance(error, ssl.SSLWantReadError):
        return select.POLLIN
    return select.POLLOUT if isinstance(error, ssl.SSLWantWriteError) else usual
