"""Measures ropewalk beside CPython's own ways, and prints the table of docs/benchmarks.md in Markdown.

Each variant has a process of its own that lives through all rounds; the variants of a group take turns, and each
round gives one ratio. CPU time is user and system time by getrusage(2), from the connection until all bytes are side
by side. The peak is what the process takes above its start: the high-water mark of its resident set, and the pages of
its memfds that are not mapped. The first round, in which the pool is cold, is shown by itself.
"""

import argparse
import asyncio
import gc
import io
import json
import os
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile

import ropewalk
import ropewalk.asyncio
import uvloop

VARIANTS = {}


def variant(function):
    VARIANTS[function.__name__] = function
    return function


# Receiving: each variant gets a port and the size, and returns what it received.


def connect(port):
    return socket.create_connection(("127.0.0.1", port))


@variant
def recv_all(port, size):
    with connect(port) as sock:
        return ropewalk.recv_all(sock)


@variant
def join(port, size):
    with connect(port) as sock:
        return b"".join(iter(lambda: sock.recv(256 << 10), b""))


@variant
def bytes_io(port, size):
    with connect(port) as sock:
        whole = io.BytesIO()
        while data := sock.recv(256 << 10):
            whole.write(data)
        return whole.getbuffer()


@variant
def recv_into(port, size):
    with connect(port) as sock:
        buffer = bytearray(size)
        view, got = memoryview(buffer), 0
        while got < size:
            got += sock.recv_into(view[got:])
        return buffer


async def _read_view(port):
    reader, writer = await ropewalk.asyncio.open_connection("127.0.0.1", port)
    view = await reader.read_view()
    writer.close()
    return view


async def _read(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = await reader.read(-1)
    writer.close()
    return data


async def _sock_recv_into(port, size):
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        buffer = bytearray(size)
        view, got = memoryview(buffer), 0
        while got < size:
            got += await loop.sock_recv_into(sock, view[got:])
        return buffer


class Known(asyncio.BufferedProtocol):
    """Receives into a bytearray of the known size."""

    def __init__(self, size, done):
        self.buffer = bytearray(size)
        self.view, self.got, self.done = memoryview(self.buffer), 0, done

    def get_buffer(self, sizehint):
        return self.view[self.got :] if self.got < len(self.buffer) else bytearray(1)

    def buffer_updated(self, nbytes):
        self.got += nbytes

    def connection_lost(self, exception):
        self.done.set_result(self.buffer)


async def _buffered_protocol(port, size):
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    await loop.create_connection(lambda: Known(size, done), "127.0.0.1", port)
    return await done


@variant
def asyncio_read_view(port, size):
    return asyncio.run(_read_view(port))


@variant
def asyncio_read(port, size):
    return asyncio.run(_read(port))


@variant
def asyncio_sock_recv_into(port, size):
    return asyncio.run(_sock_recv_into(port, size))


@variant
def uvloop_read_view(port, size):
    return uvloop.run(_read_view(port))


@variant
def uvloop_read(port, size):
    return uvloop.run(_read(port))


@variant
def uvloop_buffered_protocol(port, size):
    return uvloop.run(_buffered_protocol(port, size))


# A million messages.

MESSAGE = 64


async def _messages(open_connection, port, size):
    reader, writer = await open_connection("127.0.0.1", port)
    for _ in range(size // MESSAGE):
        await reader.readexactly(MESSAGE)
    writer.close()


@variant
def messages_ropewalk(port, size):
    asyncio.run(_messages(ropewalk.asyncio.open_connection, port, size))


@variant
def messages_asyncio(port, size):
    asyncio.run(_messages(asyncio.open_connection, port, size))


# TLS. The peer sends its certificate's authority along in the environment.


def tls_context():
    return ssl.create_default_context(cadata=os.environ["BARS_AUTHORITY"])


async def _tls_read_view(port, size):
    reader, writer = await ropewalk.asyncio.open_connection(
        "127.0.0.1", port, ssl=tls_context(), server_hostname="localhost"
    )
    view = await reader.read_view(size)
    writer.close()
    return view


async def _tls_readexactly(port, size):
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=tls_context(), server_hostname="localhost"
    )
    data = await reader.readexactly(size)
    writer.close()
    return data


@variant
def tls_asyncio_read_view(port, size):
    return asyncio.run(_tls_read_view(port, size))


@variant
def tls_uvloop_read_view(port, size):
    return uvloop.run(_tls_read_view(port, size))


@variant
def tls_asyncio_readexactly(port, size):
    return asyncio.run(_tls_readexactly(port, size))


@variant
def tls_recv_exactly(port, size):
    with tls_context().wrap_socket(connect(port), server_hostname="localhost") as sock:
        return ropewalk.recv_exactly(sock, size)


@variant
def tls_recv_into(port, size):
    with tls_context().wrap_socket(connect(port), server_hostname="localhost") as sock:
        buffer = bytearray(size)
        view, got = memoryview(buffer), 0
        while got < size:
            got += sock.recv_into(view[got:])
        return buffer


# Sending: to a file that takes `step` bytes at a time, because it may not grow beyond them.


def sending(step):
    file = tempfile.TemporaryFile()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (step, most))
    return file


@variant
def send_cursor(step, size):
    with sending(step) as file:
        rope = ropewalk.Rope()
        rope.push(bytes(size))
        cursor, fd = rope.cursor(), file.fileno()
        while cursor.remaining:
            os.lseek(fd, 0, os.SEEK_SET)
            cursor.send(fd)


@variant
def send_rope(step, size):
    with sending(step) as file:
        rope, fd = ropewalk.Rope(), file.fileno()
        rope.push(bytes(size))
        while rope:
            os.lseek(fd, 0, os.SEEK_SET)
            rope.send_to(fd)


@variant
def send_slices(step, size):
    with sending(step) as file:
        data, fd = bytes(size), file.fileno()
        while data:
            os.lseek(fd, 0, os.SEEK_SET)
            data = data[os.write(fd, data) :]


# What a round costs, in the process of its variant.


def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":"))


def memfds():
    """Bytes of memory in this process's memfds, mapped or not."""
    total = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:"):
                total += os.stat(int(fd)).st_blocks * 512
        except OSError:
            pass  # the listing's own
    return total


def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def work():
    """Does rounds as they are asked for. What the pool keeps between them counts, but only once."""
    start = status("VmRSS")
    for line in sys.stdin:
        name, port, size = json.loads(line)
        gc.collect()
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")  # the high-water mark begins anew
        before = cpu()
        received = VARIANTS[name](port, size)
        took = cpu() - before
        # A page that was given back while the round began and came again without a map is not counted twice.
        unmapped = max(0, memfds() - status("RssShmem"))
        peak = max(status("VmHWM"), status("VmRSS") + unmapped) - start
        assert received is None or len(received) == size
        checked = received is None or (received[0], received[-1]) == (1, 2)
        del received
        print(json.dumps({"cpu": took, "peak": peak, "checked": checked}), flush=True)


class Worker:
    def __init__(self, name):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, port, size):
        self.process.stdin.write(json.dumps([self.name, port, size]) + "\n")
        self.process.stdin.flush()

    def end(self):
        result = json.loads(self.process.stdout.readline())
        assert result["checked"], f"{self.name}: other bytes than were sent"
        return result

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# The peer, and the rounds.


def serve(listener, payload, context):
    sock, _ = listener.accept()
    if context is not None:
        sock = context.wrap_socket(sock, server_side=True)
    with sock:
        try:
            sock.sendall(payload)
            if context is not None:
                sock.unwrap()
        except OSError:
            pass  # who has all it wants closes


def run_group(names, payload, rounds, context=None):
    """Results of each variant, by turns; the order turns round with each round."""
    workers, results = [Worker(name) for name in names], {name: [] for name in names}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for turn in range(rounds):
            for worker in workers[:: 1 if turn % 2 else -1]:
                worker.begin(listener.getsockname()[1], len(payload))
                serve(listener, payload, context)
                results[worker.name].append(worker.end())
    for worker in workers:
        worker.close()
    return results


def run_steps(name, step, size, rounds):
    worker, results = Worker(name), []
    for _ in range(rounds):
        worker.begin(step, size)
        results.append(worker.end()["cpu"])
    worker.close()
    return statistics.median(results)


def ratios(results, ours, other):
    """Of CPU time, round by round, without the first."""
    pairs = zip(results[ours][1:], results[other][1:])
    return sorted(one["cpu"] / two["cpu"] for one, two in pairs)


class Table:
    def __init__(self):
        print("| what | figure | quartiles | cold | bar | reached |")
        print("|---|---|---|---|---|---|", flush=True)

    def row(self, what, figure, bar, reached, quartiles="", cold=""):
        print(f"| {what} | {figure} | {quartiles} | {cold} | {bar} | {'yes' if reached else 'no'} |", flush=True)

    def ratio(self, what, results, ours, other, most):
        all_ = ratios(results, ours, other)
        low, middle, high = statistics.quantiles(all_, n=4) if len(all_) > 1 else all_ * 3
        cold = results[ours][0]["cpu"] / results[other][0]["cpu"]
        self.row(what, f"{middle:.2f}", f"≤ {most}", middle <= most, f"{low:.2f} – {high:.2f}", f"{cold:.2f}")

    def peak(self, what, results, name, size, bound=None):
        peak = max(result["peak"] for result in results[name])
        reached = bound is None or peak <= bound
        bar = "" if bound is None else "≤ 1.02 + 4 MiB"
        self.row(what, f"{peak / size:.3f}", bar, reached)


def payload_of(size):
    return b"\1" + bytes(size - 2) + b"\2"


def receiving(table, size, rounds):
    payload, mib = payload_of(size), size >> 20
    results = run_group(["asyncio_read_view", "asyncio_read", "asyncio_sock_recv_into"], payload, rounds)
    bound = size * 1.02 + (4 << 20)
    table.peak(f"peak / {mib} MiB: asyncio, `read_view()`", results, "asyncio_read_view", size, bound)
    table.peak("peak: `StreamReader.read(-1)`", results, "asyncio_read", size)
    table.peak("peak: `loop.sock_recv_into`, known size", results, "asyncio_sock_recv_into", size)
    table.ratio("CPU / `StreamReader.read(-1)`", results, "asyncio_read_view", "asyncio_read", 0.5)
    table.ratio("CPU / `loop.sock_recv_into`, known size", results, "asyncio_read_view", "asyncio_sock_recv_into", 1.0)
    results = run_group(["uvloop_read_view", "uvloop_read", "uvloop_buffered_protocol"], payload, rounds)
    table.peak("peak: uvloop, `read_view()`", results, "uvloop_read_view", size, bound)
    table.peak("peak: uvloop, `StreamReader.read(-1)`", results, "uvloop_read", size)
    table.ratio("uvloop, CPU / `StreamReader.read(-1)`", results, "uvloop_read_view", "uvloop_read", 0.5)
    other = "uvloop_buffered_protocol"
    table.ratio("uvloop, CPU / `BufferedProtocol`, known size", results, "uvloop_read_view", other, 1.0)
    results = run_group(["recv_all", "join", "bytes_io", "recv_into"], payload, rounds)
    table.peak("peak: `recv_all`", results, "recv_all", size, bound)
    table.peak('peak: `b"".join`', results, "join", size)
    table.ratio('`recv_all`, CPU / `b"".join` of `recv`s', results, "recv_all", "join", 0.5)
    table.ratio("`recv_all`, CPU / `BytesIO`", results, "recv_all", "bytes_io", 0.5)
    table.ratio("`recv_all`, CPU / `bytearray` + `recv_into`, known size", results, "recv_all", "recv_into", 1.0)


def messages(table, count, rounds):
    results = run_group(["messages_ropewalk", "messages_asyncio"], payload_of(count * MESSAGE), rounds)
    what = f"{count:,} messages of {MESSAGE} B, CPU / `StreamReader.readexactly`"
    table.ratio(what, results, "messages_ropewalk", "messages_asyncio", 1.0)


def encrypted(table, size, rounds):
    import trustme

    authority = trustme.CA()
    os.environ["BARS_AUTHORITY"] = authority.cert_pem.bytes().decode()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    ways = ["tls_asyncio_read_view", "tls_uvloop_read_view", "tls_recv_exactly"]
    others = ["tls_recv_into", "tls_asyncio_readexactly"]
    results = run_group(ways + others, payload_of(size), rounds, context)
    what = f"TLS, {rounds - 1} messages of {size >> 20} MiB"
    for way in ways:
        table.ratio(f"{what}: `{way[4:]}`, CPU / blocking `recv_into`", results, way, "tls_recv_into", 1.1)
    table.ratio(f"{what}: CPU / `readexactly`", results, ways[0], "tls_asyncio_readexactly", 1.0)


def steps(table, size, rounds):
    for step, whole in ((1, size // 256), (4 << 10, size), (64 << 10, size)):
        half, full = (run_steps("send_cursor", step, part, rounds) for part in (whole // 2, whole))
        what = f"`cursor.send`, {whole >> 20} MiB, {step} bytes accepted at a time: CPU / half of it"
        table.row(what, f"{full / half:.2f}", "≤ 2.4 (linear)", full / half <= 2.4)
    small, step = min(size, 16 << 20), 4 << 10
    slices = run_steps("send_slices", step, small, 1)
    for name in ("send_cursor", "send_rope"):
        times = slices / run_steps(name, step, small, rounds)
        what = f"`data = data[sent:]` / `{name}`, {small >> 20} MiB, 4 KiB accepted at a time"
        table.row(what, f"{times:.0f} x", "≥ 100 x", times >= 100)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=256, help="MiB of a payload")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--tls-messages", type=int, default=100, help="of 100 MiB each")
    args = parser.parse_args()
    if args.work:
        return work()
    print(f"CPython {sys.version.split()[0]}, uvloop {uvloop.__version__}, {ssl.OPENSSL_VERSION}\n")
    table = Table()
    receiving(table, args.size << 20, args.rounds + 1)
    messages(table, args.messages, args.rounds + 1)
    steps(table, args.size << 20, 3)
    encrypted(table, 100 << 20, args.tls_messages + 1)


if __name__ == "__main__":
    main()
