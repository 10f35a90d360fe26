"""Measures ropewalk beside CPython's own ways, and prints the table of docs/benchmarks.md in Markdown.

Each variant has a process of its own that lives through all rounds; the variants of a group take turns. CPU time is
user and system time by getrusage(2), from the connection until all bytes are contiguous. The peak is what the
process takes above its start: the high-water mark of its resident set, and the pages of its memfds that are not
mapped. Figures are medians of the rounds; a ratio is the median of the rounds' ratios, with its quartiles. The first
round, in which the pool is cold, is shown by itself.
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
from functools import partial

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


def connect_tls(port):
    # The peer sends its certificate's authority along in the environment.
    context = ssl.create_default_context(cadata=os.environ["BARS_AUTHORITY"])
    return context.wrap_socket(connect(port), server_hostname="localhost")


def fill(sock, size):
    """Receives into a bytearray of the known size."""
    buffer = bytearray(size)
    view, got = memoryview(buffer), 0
    while got < size:
        got += sock.recv_into(view[got:])
    return buffer


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
        return fill(sock, size)


@variant
def tls_recv_exactly(port, size):
    with connect_tls(port) as sock:
        return ropewalk.recv_exactly(sock, size)


@variant
def tls_recv_into(port, size):
    with connect_tls(port) as sock:
        return fill(sock, size)


async def streams(module, read, port, size, **options):
    """What `read(reader, size)` returns, of asyncio's streams or of ropewalk's."""
    reader, writer = await module.open_connection("127.0.0.1", port, **options)
    received = await read(reader, size)
    writer.close()
    return received


async def tls_streams(module, read, port, size):
    context = ssl.create_default_context(cadata=os.environ["BARS_AUTHORITY"])
    return await streams(module, read, port, size, ssl=context, server_hostname="localhost")


async def messages(reader, size):
    for _ in range(size // MESSAGE):
        await reader.readexactly(MESSAGE)


async def sock_recv_into(port, size):
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


async def buffered_protocol(port, size):
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    await loop.create_connection(lambda: Known(size, done), "127.0.0.1", port)
    return await done


MESSAGE = 64

STREAMS = {
    "read_view": partial(streams, ropewalk.asyncio, lambda reader, size: reader.read_view()),
    "read": partial(streams, asyncio, lambda reader, size: reader.read(-1)),
    "messages_ropewalk": partial(streams, ropewalk.asyncio, messages),
    "messages_asyncio": partial(streams, asyncio, messages),
    "tls_read_view": partial(tls_streams, ropewalk.asyncio, lambda reader, size: reader.read_view(size)),
    "tls_readexactly": partial(tls_streams, asyncio, lambda reader, size: reader.readexactly(size)),
    "sock_recv_into": sock_recv_into,
    "buffered_protocol": buffered_protocol,
}


def on_loop(run, receive, port, size):
    received = []

    async def main():
        # Not as the result: CPython 3.11's asyncio.run would make its repr, four characters a byte.
        received.append(await receive(port, size))

    run(main())
    return received.pop()


for name, receive in STREAMS.items():
    VARIANTS[f"asyncio_{name}"] = partial(on_loop, asyncio.run, receive)
    VARIANTS[f"uvloop_{name}"] = partial(on_loop, uvloop.run, receive)


# Sending: to a file that takes `step` bytes at a time, because it may not grow beyond them.


def send(step, left, call):
    """Sends while `left()`, from the start of the file each time."""
    with tempfile.TemporaryFile() as file:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (step, most))
        fd = file.fileno()
        while left():
            os.lseek(fd, 0, os.SEEK_SET)
            call(fd)


@variant
def send_cursor(step, size):
    rope = ropewalk.Rope()
    rope.push(bytes(size))
    cursor = rope.cursor()
    send(step, lambda: cursor.remaining, cursor.send)


@variant
def send_rope(step, size):
    rope = ropewalk.Rope()
    rope.push(bytes(size))
    send(step, lambda: len(rope), rope.send_to)


@variant
def send_slices(step, size):
    data = bytes(size)

    def slices(fd):
        nonlocal data
        data = data[os.write(fd, data) :]

    send(step, lambda: data, slices)


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


class Table:
    """Rows of ropewalk's figure, the other way's, and the first through the second."""

    def __init__(self):
        print("| what | beside | ropewalk | beside it | ratio | quartiles | cold | bar | reached |")
        print("|---|---|---|---|---|---|---|---|---|", flush=True)

    def row(self, *cells, reached):
        print("|", " | ".join(cells), "|", "yes" if reached else "no", "|", flush=True)

    def cpu(self, what, beside, results, ours, other, most):
        """Milliseconds of CPU time."""
        times = [[result["cpu"] for result in results[name]] for name in (ours, other)]
        cold, *ratios = (one / two for one, two in zip(*times))
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        medians = (f"{statistics.median(rounds[1:]) * 1e3:.1f} ms" for rounds in times)
        figures = (f"{middle:.2f}", f"{low:.2f} – {high:.2f}", f"{cold:.2f}", f"≤ {most}")
        self.row(what, beside, *medians, *figures, reached=middle <= most)

    def peak(self, what, results, ours, others, size):
        """Of all rounds, in payloads."""
        peaks = {name: max(result["peak"] for result in results[name]) for name in (ours, *others)}
        for name, beside in others.items():
            ratio = f"{peaks[ours] / peaks[name]:.2f}"
            figures = (f"{peaks[each] / size:.3f}" for each in (ours, name))
            reached = peaks[ours] <= size * 1.02 + (4 << 20)
            self.row(f"{what}: peak / payload", beside, *figures, ratio, "", "", "≤ 1.02 + 4 MiB", reached=reached)


def payload_of(size):
    return b"\1" + bytes(size - 2) + b"\2"


def receiving(table, size, rounds):
    mib = size >> 20
    for loop, known, beside in (
        ("asyncio", "asyncio_sock_recv_into", "`loop.sock_recv_into` a `bytearray` of the known size"),
        ("uvloop", "uvloop_buffered_protocol", "`BufferedProtocol` into a `bytearray` of the known size"),
    ):
        ours, read = f"{loop}_read_view", f"{loop}_read"
        others = {read: "`StreamReader.read(-1)`", known: beside}
        results = run_group([ours, *others], payload_of(size), rounds)
        what = f"{mib} MiB, {loop}: `read_view()`"
        table.peak(what, results, ours, others, size)
        table.cpu(what, others[read], results, ours, read, 0.5)
        table.cpu(what, beside, results, ours, known, 1.0)
    others = {"join": '`b"".join` of `recv`s', "bytes_io": "`BytesIO`", "recv_into": "`bytearray` + `recv_into`, known size"}
    results = run_group(["recv_all", *others], payload_of(size), rounds)
    what = f"{mib} MiB, blocking: `recv_all`"
    table.peak(what, results, "recv_all", others, size)
    for other, most in (("join", 0.5), ("bytes_io", 0.5), ("recv_into", 1.0)):
        table.cpu(what, others[other], results, "recv_all", other, most)


def small_messages(table, count, rounds):
    for loop in ("asyncio", "uvloop"):
        ours, other = f"{loop}_messages_ropewalk", f"{loop}_messages_asyncio"
        results = run_group([ours, other], payload_of(count * MESSAGE), rounds)
        what = f"{count:,} messages of {MESSAGE} B, {loop}: `readexactly`"
        table.cpu(what, "`StreamReader.readexactly`", results, ours, other, 1.0)


def encrypted(table, size, rounds):
    import trustme

    authority = trustme.CA()
    os.environ["BARS_AUTHORITY"] = authority.cert_pem.bytes().decode()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    ways = {
        "tls_recv_exactly": "blocking: `recv_exactly`",
        "asyncio_tls_read_view": "asyncio: `read_view`",
        "uvloop_tls_read_view": "uvloop: `read_view`",
    }
    others = ["tls_recv_into", "asyncio_tls_readexactly"]
    results = run_group([*ways, *others], payload_of(size), rounds, context)
    what = f"TLS, {rounds - 1} messages of {size >> 20} MiB"
    for ours, way in ways.items():
        table.cpu(f"{what}, {way}", "blocking `ssl`, `recv_into`", results, ours, "tls_recv_into", 1.1)
    ours, other = "asyncio_tls_read_view", "asyncio_tls_readexactly"
    table.cpu(f"{what}, asyncio: `read_view`", "`StreamReader.readexactly`", results, ours, other, 1.0)


def sending(table, size, rounds):
    for step, whole in ((1, size // 256), (4 << 10, size), (64 << 10, size)):
        full, half = (run_steps("send_cursor", step, part, rounds) for part in (whole, whole // 2))
        what = f"`cursor.send`, {whole >> 20} MiB, {step} bytes accepted at a time"
        figures = (f"{full * 1e3:.1f} ms", f"{half * 1e3:.1f} ms", f"{full / half:.2f}")
        table.row(what, "itself, half of it", *figures, "", "", "≤ 2.4 (linear)", reached=full / half <= 2.4)
    small, step = min(size, 16 << 20), 4 << 10
    slices = run_steps("send_slices", step, small, 1)
    for name in ("send_cursor", "send_rope"):
        ours = run_steps(name, step, small, rounds)
        figures = (f"{ours * 1e3:.1f} ms", f"{slices * 1e3:.1f} ms", f"{slices / ours:.0f} x less")
        what = f"`{name}`, {small >> 20} MiB, 4 KiB accepted at a time"
        table.row(what, "`data = data[sent:]`", *figures, "", "", "≥ 100 x", reached=slices / ours >= 100)


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
    small_messages(table, args.messages, args.rounds + 1)
    sending(table, args.size << 20, 3)
    encrypted(table, 100 << 20, args.tls_messages + 1)


if __name__ == "__main__":
    main()
