"""Ten thousand connections at a time."""

import resource
import subprocess
import sys
import textwrap

import pytest

CLIENTS = """
    import asyncio, sys

    async def client(port, number, ready, go):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        ready.release()
        await go.wait()
        message = b"%08d" % number
        writer.write(message * 8)
        assert await reader.readexactly(64) == message * 8
        ready.release()
        writer.close()

    async def main(port, count):
        ready, go = asyncio.Semaphore(0), asyncio.Event()
        tasks = []
        for number in range(count):
            tasks.append(asyncio.ensure_future(client(port, number, ready, go)))
            if number % 100 == 99:
                for _ in range(100):
                    await ready.acquire()
        print("connected", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        go.set()
        await asyncio.gather(*tasks)

    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
"""

SERVER = """
    import asyncio, subprocess, sys, ropewalk, ropewalk.asyncio

    async def main(count, clients):
        pool = ropewalk.Pool(capacity=64 << 20)

        async def echo(reader, writer):
            try:
                while True:
                    writer.write(await reader.readexactly(64))
            except asyncio.IncompleteReadError:
                writer.close()

        server = await ropewalk.asyncio.start_server(echo, "127.0.0.1", 0, pool=pool, backlog=1000)
        port = server.sockets[0].getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", clients, str(port), str(count), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert await process.stdout.readline() == b"connected\\n"
        assert pool.stats().in_use == 0, "an idle connection holds a page"
        process.stdin.write(b"go\\n")
        assert await process.wait() == 0
        server.close()
        assert pool.stats().in_use == 0
        print(count, "connections, peak", pool.stats().peak)

    __import__(sys.argv[1]).run(main(int(sys.argv[2]), sys.argv[3]))
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_ten_thousand_connections(loop):
    pytest.importorskip(loop)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10_000, (most - 200) // 100 * 100)
    program = [sys.executable, "-c", textwrap.dedent(SERVER), loop, str(count), textwrap.dedent(CLIENTS)]

    def raise_limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    done = subprocess.run(program, capture_output=True, text=True, timeout=480, preexec_fn=raise_limit)
    assert done.returncode == 0, done.stderr[-2000:]
