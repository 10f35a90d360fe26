import sys
from typing import Protocol

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
else:
    from typing_extensions import Buffer

from ._ropewalk import Cursor, Pool, Rope, View

class _HasFileno(Protocol):
    def fileno(self) -> int: ...

def recv_all(sock: int | _HasFileno, pool: Pool | None = None, limit: int | None = None) -> View: ...
def recv_exactly(sock: int | _HasFileno, n: int, pool: Pool | None = None) -> View: ...
def send_all(sock: int | _HasFileno, rope: Rope | Cursor | Buffer) -> None: ...
