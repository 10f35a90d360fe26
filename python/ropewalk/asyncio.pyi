import asyncio
import sys
from asyncio import IncompleteReadError
from collections.abc import Awaitable, Callable, Iterable
from os import PathLike
from ssl import SSLContext
from typing import Any

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer

from ._ropewalk import LimitExceeded, Pool, Rope, View

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

_Connected = Callable[[StreamReader, StreamWriter], Awaitable[None] | None]
_Path = str | bytes | PathLike[str]

class LimitOverrunError(LimitExceeded, asyncio.LimitOverrunError, ValueError):
    def __init__(self, message: str, consumed: int, limit: int | None = None, held: int | None = None) -> None: ...

class StreamReader(asyncio.StreamReader):
    def __init__(
        self, pool: Pool | None = None, limit: int | None = None, loop: asyncio.AbstractEventLoop | None = None
    ) -> None: ...
    async def read_view(self, n: int = -1) -> View: ...

class StreamWriter(asyncio.StreamWriter):
    def write(self, data: Buffer | Rope) -> None: ...
    def writelines(self, data: Iterable[Buffer | Rope]) -> None: ...

async def open_connection(
    host: str | None = None, port: int | str | None = None, pool: Pool | None = None, limit: int | None = None,
    ssl: SSLContext | bool | None = None, **options: Any,
) -> tuple[StreamReader, StreamWriter]: ...
async def open_unix_connection(
    path: _Path | None = None, pool: Pool | None = None, limit: int | None = None,
    ssl: SSLContext | bool | None = None, **options: Any,
) -> tuple[StreamReader, StreamWriter]: ...
async def start_server(
    client_connected: _Connected, host: str | None = None, port: int | str | None = None,
    pool: Pool | None = None, limit: int | None = None, ssl: SSLContext | None = None, **options: Any,
) -> asyncio.Server: ...
async def start_unix_server(
    client_connected: _Connected, path: _Path | None = None, pool: Pool | None = None,
    limit: int | None = None, ssl: SSLContext | None = None, **options: Any,
) -> asyncio.Server: ...
