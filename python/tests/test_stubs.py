"""The stubs agree with the module, and callers' programs with the stubs."""

import subprocess
import sys
from pathlib import Path

import pytest

from test_processes import python

PROGRAM = """
import socket
import ssl

import ropewalk


def core(sock: socket.socket) -> bytes:
    pool = ropewalk.Pool(capacity=1 << 20, retain=None, decay=0.5)
    given: int = pool.trim() + pool.stats().in_use
    rope, other = ropewalk.Rope(pool=pool, limit=None), ropewalk.Rope()
    rope.push(b"bytes")
    rope.push(bytearray(given))
    rope.append(other)
    front: ropewalk.Rope = rope.split_to(1)
    found: int | None = rope.find(b"\\r\\n")
    received: int = rope.recv_from(sock, max=len(front)) + rope.send_to(sock.fileno())
    cursor = rope[1:].cursor(position=found or received)
    while cursor.remaining:
        cursor.position = cursor.send(sock)
    rope.clear()
    view: ropewalk.View = rope.finalize()
    copied: int = view.copied_bytes + view.mapped_bytes + len(view[1:]) + view[0]
    ropewalk.send_all(sock, memoryview(view)[copied:])
    ropewalk.send_all(sock, rope)
    try:
        return bytes(ropewalk.recv_all(sock, pool=pool, limit=5)) + bytes(ropewalk.recv_exactly(sock, 5, pool=None))
    except ropewalk.LimitExceeded as refused:
        as_os_error: OSError = refused
        return bytes(refused.limit + refused.held)
    except ropewalk.PoolFull as full:
        as_memory_error: MemoryError = full
        return bytes(full.capacity + full.in_use)


async def serve(reader: ropewalk.asyncio.StreamReader, writer: ropewalk.asyncio.StreamWriter) -> None:
    view: ropewalk.View = await reader.read_view(n=-1)
    data: bytes = await reader.readexactly(5) + await reader.readuntil(b"\\n") + await reader.read(5)
    writer.write(view)
    writer.write(ropewalk.Rope())
    writer.writelines([data, view])
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def streams(context: ssl.SSLContext) -> None:
    server = await ropewalk.asyncio.start_server(serve, "localhost", 0, pool=None, limit=5, ssl=context)
    reader, writer = await ropewalk.asyncio.open_connection("localhost", 1, pool=None, limit=None, ssl=None)
    await serve(reader, writer)
    server.close()
"""


def mypy(*args, cwd):
    pytest.importorskip("mypy")
    done = subprocess.run([sys.executable, "-m", *args], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_stubs_agree_with_the_module(tmp_path):
    # From 3.12 on the buffer protocol can be seen from Python.
    hidden = r"ropewalk\._ropewalk\.View\.__(release_)?buffer__" if sys.version_info < (3, 12) else ""
    (tmp_path / "hidden").write_text(hidden)
    mypy("mypy.stubtest", "ropewalk", "--allowlist", "hidden", cwd=tmp_path)


def test_programs_are_checked_by_the_stubs(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    mypy("mypy", "--strict", "program.py", cwd=tmp_path)


def test_the_package_says_that_it_has_types():
    import ropewalk

    assert (Path(ropewalk.__file__).parent / "py.typed").exists()


def test_streams_are_imported_when_they_are_asked_for():
    python("""
        import ropewalk, sys
        assert "asyncio" not in sys.modules and not hasattr(ropewalk, "streams")
        assert issubclass(ropewalk.asyncio.StreamReader, sys.modules["asyncio"].StreamReader)
    """)
