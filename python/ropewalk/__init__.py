"""A rope for I/O on Linux.

Bytes arrive in pieces, are laid into memory once, leave by gather writes from any offset, and end as one
contiguous view, without a join.

* :class:`Pool` recycles pages; :class:`Rope` holds what arrived; :class:`Cursor` is a position in it;
  :class:`View` is all of it, contiguous, for anything that takes the buffer protocol.
* :func:`recv_all`, :func:`recv_exactly` and :func:`send_all` are for plain sockets.
* :mod:`ropewalk.asyncio` has ``open_connection`` and ``start_server``.
"""

from typing import TYPE_CHECKING

# First: a subinterpreter is refused here, before it imports ssl, with which CPython 3.12.1 cannot end.
from ._ropewalk import Cursor, LimitExceeded, Pool, PoolFull, Room, Rope, View, default_pool
from ._blocking import recv_all, recv_exactly, send_all
from ._stats import PoolStats

if TYPE_CHECKING:
    from . import asyncio as asyncio
else:

    def __getattr__(name):
        # Imported on first use: asyncio doubles the time of `import ropewalk`.
        if name == "asyncio":
            import importlib

            return importlib.import_module("ropewalk.asyncio")
        raise AttributeError(f"module 'ropewalk' has no attribute {name!r}")


__all__ = [
    "Cursor",
    "LimitExceeded",
    "Pool",
    "PoolFull",
    "PoolStats",
    "Room",
    "Rope",
    "View",
    "default_pool",
    "recv_all",
    "recv_exactly",
    "send_all",
]
