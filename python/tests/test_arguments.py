"""Every constructor and method, called with what it does not take: an exception that says so, and nothing has changed."""

import array
import ctypes
import inspect
import io
import mmap
import pickle
import socket

import pytest

import ropewalk
import ropewalk.asyncio


class Index:
    def __init__(self, number=1):
        self.number = number

    def __index__(self):
        return self.number


class Failing:
    def __index__(self):
        raise ZeroDivisionError

    fileno = __index__


class Text:
    def fileno(self):
        return "3"


@pytest.fixture
def rope():
    rope = ropewalk.Rope(ropewalk.Pool(capacity=1 << 20))
    rope.push(b"hel")
    rope.push(b"lo")
    yield rope
    assert rope == b"hello" and rope.limit is None, "a call that was refused has changed the rope"


def receive_nothing(rope, most):
    one, other = socket.socketpair()
    with one, other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            rope.recv_from(other, max=most)


def receive(receive, *args, **options):
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"x")
        one.close()
        return receive(other, *args, **options)


def fill(rope, count):
    rope = rope[:]
    rope.get_buffer()
    rope.buffer_updated(count)


# What takes an integer, and whether None is one too.
INTEGERS = {
    "Pool(capacity)": (lambda rope, n: ropewalk.Pool(capacity=n), True),
    "Pool(retain)": (lambda rope, n: ropewalk.Pool(retain=n), True),
    "wait_for_room": (lambda rope, n: ropewalk.default_pool().wait_for_room(n), False),
    "Rope(limit)": (lambda rope, n: ropewalk.Rope(limit=n), True),
    "limit": (lambda rope, n: setattr(rope[:], "limit", n), True),
    "split_to": (lambda rope, n: rope[:].split_to(n), False),
    "advance": (lambda rope, n: rope[:].advance(n), False),
    "find": (lambda rope, n: rope.find(b"x", n), False),
    "reserve": (lambda rope, n: rope[:].reserve(n), False),
    "max": (receive_nothing, True),
    "cursor": (lambda rope, n: rope.cursor(n), False),
    "position": (lambda rope, n: setattr(rope.cursor(), "position", n), False),
    "buffer_updated": (fill, False),
    "recv_exactly": (lambda rope, n: receive(ropewalk.recv_exactly, n), False),
    "recv_all(limit)": (lambda rope, n: receive(ropewalk.recv_all, limit=n), True),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(rope, name):
    call, none = INTEGERS[name]
    for right in (True, 1, Index(), *((None,) if none else ())):
        call(rope, right)
    for wrong in (1.0, float("nan"), "1", b"1", [1], object(), *(() if none else (None,))):
        with pytest.raises(TypeError):
            call(rope, wrong)
    for negative in (-1, -(1 << 63), -(1 << 200), -(10**5000)):
        for number in (negative, Index(negative)):
            with pytest.raises(ValueError, match="not negative: "):
                call(rope, number)
    for number in (1 << 64, 1 << 200, 10**5000, Index(1 << 200)):
        with pytest.raises(OverflowError):
            call(rope, number)
    with pytest.raises(ZeroDivisionError):
        call(rope, Failing())


def test_a_number_beyond_the_rope_is_told(rope):
    for call in (rope.split_to, rope.advance, rope.cursor):
        with pytest.raises(IndexError, match="6 is beyond the rope's 5 bytes"):
            call(6)
    assert rope.find(b"l", 6) is None and rope.find(b"", 5) == 5


@pytest.mark.parametrize("decay", [-1, -0.5, float("nan"), float("inf"), 1e300, 1 << 200])
def test_a_decay_is_seconds(decay):
    with pytest.raises(ValueError, match=r"decay is 0 to 2\*\*64 seconds, not"):
        ropewalk.Pool(decay=decay)
    for wrong in ("1", b"1", [], object()):
        with pytest.raises(TypeError):
            ropewalk.Pool(decay=wrong)
    ropewalk.Pool(decay=0), ropewalk.Pool(decay=Index()), ropewalk.Pool(decay=None)


def send(data):
    one, other = socket.socketpair()
    with one, other:
        ropewalk.send_all(one, data)


BUFFERS = {
    "push": lambda rope, data: rope[:].push(data),
    "push_front": lambda rope, data: rope[:].push_front(data),
    "extend": lambda rope, data: rope[:].extend(data),
    "find": lambda rope, data: rope.find(data),
    "in a rope": lambda rope, data: data in rope,
    "in a view": lambda rope, data: data in rope[:].finalize(),
    "View": lambda rope, data: ropewalk.View(data),
    "send_all": lambda rope, data: send(data),
}


def mapping():
    mapped = mmap.mmap(-1, 4096)
    mapped.write(b"mapped")
    return mapped


def released():
    released = memoryview(b"released")
    released.release()
    return released


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers(rope, name):
    numpy = pytest.importorskip("numpy")
    for right in (
        b"", b"bytes", bytearray(b"bytearray"), memoryview(b"view")[1:], array.array("d", [1.5]), (ctypes.c_int * 3)(),
        mapping(), io.BytesIO(b"stream").getbuffer(), pickle.PickleBuffer(b"pickle"), ropewalk.View(b"view"),
        memoryview(bytes(12)).cast("I", (3, 1)), numpy.zeros((3, 3)), numpy.float64(1), numpy.zeros((0, 5)),
    ):
        BUFFERS[name](rope, right)
    for wrong in (None, 1 << 40, -1, 1.5, "text", [1], (1,), {}, object(), ropewalk.default_pool(), Failing, int):
        with pytest.raises(TypeError):
            BUFFERS[name](rope, wrong)
    for wrong in (memoryview(b"0123")[::2], memoryview(b"0123")[::-1], numpy.zeros((3, 2)).T, released()):
        with pytest.raises((BufferError, ValueError)):
            BUFFERS[name](rope, wrong)


def test_what_is_looked_for_is_a_buffer_or_a_byte(rope):
    for within in (rope, rope[:].finalize()):
        assert b"ell" in within and b"lo" in within and b"" in within and b"elo" not in within
        assert ord("h") in within and ord("x") not in within and memoryview(b"l") in within
        for wrong in (256, -1, "h", None):
            with pytest.raises(TypeError):
                wrong in within
    assert rope.find(ord("l")) == 2 and rope.find(ord("l"), 3) == 3


SOCKETS = {
    "recv_from": lambda rope, sock: rope.recv_from(sock),
    "recvmsg": lambda rope, sock: rope.recvmsg(sock),
    "send_to": lambda rope, sock: rope.send_to(sock),
    "sendmsg": lambda rope, sock: rope.sendmsg(sock),
    "sendmsg(fds)": lambda rope, sock: rope.sendmsg(1, [sock]),
    "cursor.send": lambda rope, sock: rope.cursor().send(sock),
    "cursor.send_to": lambda rope, sock: rope.cursor().send_to(sock),
    "cursor.sendmsg": lambda rope, sock: rope.cursor().sendmsg(sock),
    "recv_all": lambda rope, sock: ropewalk.recv_all(sock),
    "recv_exactly": lambda rope, sock: ropewalk.recv_exactly(sock, 1),
    "send_all": lambda rope, sock: ropewalk.send_all(sock, rope),
    "send_all(bytes)": lambda rope, sock: ropewalk.send_all(sock, b"x"),
}


@pytest.mark.parametrize("name", SOCKETS)
def test_sockets(rope, name):
    call = SOCKETS[name]
    for wrong in (None, "socket", b"x", 1.5, [0], object(), Text(), socket.socket):
        with pytest.raises(TypeError):
            call(rope, wrong)
    closed = socket.socket()
    closed.close()
    for wrong in (-1, closed):
        with pytest.raises(ValueError, match="-1"):
            call(rope, wrong)
    with pytest.raises(OverflowError):
        call(rope, 1 << 40)
    with pytest.raises(OSError):
        call(rope, 1 << 20)
    with pytest.raises(ZeroDivisionError):
        call(rope, Failing())


OBJECTS = {
    "Rope(pool)": lambda rope, wrong: ropewalk.Rope(wrong),
    "append": lambda rope, wrong: rope.append(wrong),
    "add_room": lambda rope, wrong: rope.add_room(wrong),
    "recv_all(pool)": lambda rope, wrong: ropewalk.recv_all(0, wrong),
    "recv_exactly(pool)": lambda rope, wrong: ropewalk.recv_exactly(0, 1, wrong),
    "sendmsg(fds)": lambda rope, wrong: rope.sendmsg(1, wrong),
    "decode": lambda rope, wrong: rope[:].finalize().decode(wrong),
    "decode(errors)": lambda rope, wrong: rope[:].finalize().decode("utf-8", wrong),
    "an index of a rope": lambda rope, wrong: rope[wrong],
    "a slice of a rope": lambda rope, wrong: rope[wrong:],
    "a slice of a view": lambda rope, wrong: rope[:].finalize()[wrong:],
    "a step": lambda rope, wrong: rope[::wrong],
    "an unknown option": lambda rope, wrong: ropewalk.Rope(wrong=wrong),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_other_objects(rope, name):
    for wrong in (1.5, object(), b"bytes", "text", {1: 2}, int):
        # Some text is the name of an encoding; bytes are a sequence of integers, which may be descriptors.
        if not (isinstance(wrong, str) and "decode" in name or isinstance(wrong, bytes) and "fds" in name):
            with pytest.raises(TypeError):
                OBJECTS[name](rope, wrong)


def test_slices(rope):
    view, text = rope[:].finalize(), b"hello"
    bounds = [None, 0, 1, 4, 5, 6, -1, -5, -6, 1 << 70, -1 << 70, True, Index()]
    for start in bounds:
        for stop in bounds:
            assert bytes(rope[start:stop]) == bytes(view[start:stop]) == text[start:stop]
            for step in (-1, 2, 1 << 70, -1 << 70):
                for sliced in (rope, view):
                    with pytest.raises(TypeError, match="its step is 1, not"):
                        sliced[start:stop:step]
    with pytest.raises(ValueError):
        rope[::0]


def test_types_are_what_they_say(rope):
    for made in (rope.cursor(), ropewalk.default_pool().wait_for_room(1)):
        with pytest.raises(TypeError, match="cannot create"):
            type(made)()
    for made in (rope, rope.cursor(), rope[:].finalize(), ropewalk.default_pool()):
        with pytest.raises(TypeError, match="not an acceptable base type"):
            type("Derived", (type(made),), {})
        with pytest.raises(AttributeError):
            made.unknown = 1
    for made in (rope, rope.cursor(), ropewalk.default_pool()):
        with pytest.raises(TypeError, match="cannot pickle"):
            pickle.dumps(made)
    with pytest.raises(TypeError, match="unhashable"):
        hash(rope)
    with pytest.raises(TypeError):
        ropewalk.View()


def test_signatures_are_those_that_callers_may_count_on():
    streams = ropewalk.asyncio
    connection, server = "(host=None, port=None, pool=None, limit=None, ssl=None, **options)", "(client_connected, "
    signatures = {
        ropewalk.Pool: "(capacity=None, retain=None, decay=None)",
        ropewalk.Rope: "(pool=None, limit=None)",
        ropewalk.Rope.push: "(self, /, buffer)",
        ropewalk.Rope.split_to: "(self, /, n)",
        ropewalk.Rope.recv_from: "(self, /, sock, max=None)",
        ropewalk.Rope.send_to: "(self, /, sock)",
        ropewalk.Rope.cursor: "(self, /, position=0)",
        ropewalk.Cursor.send: "(self, /, sock)",
        ropewalk.recv_all: "(sock, pool=None, limit=None)",
        ropewalk.recv_exactly: "(sock, n, pool=None)",
        ropewalk.send_all: "(sock, rope)",
        streams.open_connection: connection,
        streams.open_unix_connection: connection.replace("host=None, port=None", "path=None"),
        streams.start_server: connection.replace("(", server),
        streams.start_unix_server: connection.replace("(host=None, port=None", server + "path=None"),
        streams.StreamReader.read_view: "(self, n=-1)",
        streams.StreamWriter.write: "(self, data)",
    }
    for call, signature in signatures.items():
        assert str(inspect.signature(call)) == signature, call
