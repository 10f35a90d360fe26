"""The scene of 2003, on python-list: payloads of 1 byte to hundreds of megabytes over non-blocking sockets.

One thread, two non-blocking sockets of loopback, `selectors`. The message's three approaches, beside ropewalk's:

    slices    send data, then data = data[sent:]; receive into a list, then join
    buffer    send data, then data = data[sent:], received at the end of a bytes that grows
    known     send from a memoryview at an offset; receive into a bytearray whose size has to be known
    ropewalk  send from an offset by a cursor; receive into a rope, size unknown, then one view

Each runs in a process of its own. Bytes, milliseconds, the peak of memory over the start as a multiple of the payload
(beside the payload that is sent), and how many objects receiving made.
"""

import argparse
import os
import selectors
import socket
import subprocess
import sys
import time

import ropewalk

STEP = 64 << 10

# Most bytes for which the quadratic approaches are run: beyond, they take minutes.
PATIENCE = 16 << 20


class Slices:
    """data = data[sent:] is a copy of the rest for every send; a join needs twice the memory."""

    def __init__(self, data):
        self.data, self.pieces = data, []

    def send(self, sock):
        self.data = self.data[sock.send(self.data) :]
        return bool(self.data)

    def receive(self, sock):
        piece = sock.recv(STEP)
        self.pieces.append(piece)
        return piece

    def finish(self):
        return b"".join(self.pieces), len(self.pieces) + 1


class Buffer(Slices):
    """The same, received at the end of a bytes: a copy of all of it for every piece, or a realloc."""

    def __init__(self, data):
        super().__init__(data)
        self.whole, self.count = b"", 0

    def receive(self, sock):
        piece = sock.recv(STEP)
        self.whole += piece
        self.count += 2
        return piece

    def finish(self):
        return self.whole, self.count


class Known:
    """A buffer of the known size, filled with zeros first; an offset, and a slice of the view for every call."""

    def __init__(self, data):
        self.data, self.sent = memoryview(data), 0
        self.whole, self.got, self.count = bytearray(len(data)), 0, 2

    def send(self, sock):
        self.sent += sock.send(self.data[self.sent :])
        return self.sent < len(self.data)

    def receive(self, sock):
        got = sock.recv_into(memoryview(self.whole)[self.got :]) if self.got < len(self.whole) else 0
        self.got += got
        self.count += 2
        return got

    def finish(self):
        return self.whole, self.count


class Ropewalk:
    """The wish of 2003: send(data, offset); and a payload of unknown size, in memory once."""

    def __init__(self, data):
        rope = ropewalk.Rope()
        rope.push(data)
        self.cursor, self.rope = rope.cursor(), ropewalk.Rope()

    def send(self, sock):
        self.cursor.send(sock)
        return self.cursor.remaining

    def receive(self, sock):
        return self.rope.recv_from(sock)

    def finish(self):
        pieces = len(self.rope.segments())
        return self.rope.finalize(), pieces + 2


APPROACHES = {"slices": Slices, "buffer": Buffer, "known": Known, "ropewalk": Ropewalk}


def memory():
    """Bytes of memory of this process: its resident set, and the pages of its memfds that are not mapped."""
    with open("/proc/self/status") as lines:
        status = {line.split(":")[0]: line.split()[1:] for line in lines}
    memfds = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:"):
                memfds += os.stat(int(fd)).st_blocks * 512
        except OSError:
            pass  # the listing's own
    unmapped = max(0, memfds - (int(status["RssShmem"][0]) << 10))
    return (int(status["VmRSS"][0]) << 10) + unmapped, (int(status["VmHWM"][0]) << 10) + unmapped


def pump(approach, here, there):
    """One thread moves the payload from one socket to the other."""
    with selectors.DefaultSelector() as selector:
        selector.register(here, selectors.EVENT_WRITE)
        selector.register(there, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                try:
                    if key.fileobj is here and not approach.send(here):
                        selector.unregister(here)
                        here.shutdown(socket.SHUT_WR)
                    elif key.fileobj is there and not approach.receive(there):
                        return
                except BlockingIOError:
                    pass  # on the next turn


def connected():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
    here.setblocking(False)
    there.setblocking(False)
    return here, there


def scene(name, size):
    pattern = bytes(range(251))
    data = (pattern * (size // len(pattern) + 1))[:size]
    here, there = connected()
    start, _ = memory()
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")  # the high-water mark begins anew
    clock = time.perf_counter()
    approach = APPROACHES[name](data)
    with here, there:
        pump(approach, here, there)
    whole, objects = approach.finish()
    took = time.perf_counter() - clock
    peak = memory()[1] - start
    assert whole == data, "other bytes arrived than were sent"
    print(f"{size:>11,} {name:9} {took * 1e3:10.1f} {peak / size:9.2f} {objects:8,}", flush=True)


def positive(text):
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=positive, help="bytes of the payloads")
    parser.add_argument("--scene", choices=APPROACHES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.scene:
        return scene(args.scene, *args.sizes)
    print(f"{'bytes':>11} {'approach':9} {'ms':>10} {'peak':>9} {'objects':>8}")
    for size in args.sizes or (1, 100_000, 16 << 20, 256 << 20):
        for name in APPROACHES:
            if size > PATIENCE and name in ("slices", "buffer"):
                print(f"{size:>11,} {name:9} copies {size // STEP:,} times what is left or there, on the way", flush=True)
                continue
            subprocess.run([sys.executable, __file__, "--scene", name, str(size)], check=True)


if __name__ == "__main__":
    main()
