"""Whole payloads through plain sockets."""

import os
import select
import signal
import socket
import ssl
import struct
import threading
import time

import pytest

import ropewalk
from test_processes import REFUSED, python


def reset(sock):
    """Closes with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def end(sock):
    """Says that this was all, which TLS does by more than closing."""
    if hasattr(sock, "unwrap"):
        try:
            sock.unwrap()
        except OSError:
            pass  # the other end says nothing more


@pytest.fixture(params=[None, 30.0, 0.0], ids=["blocking", "timeout", "non-blocking"])
def mode(request):
    return request.param


@pytest.fixture
def connect(tls, mode, peer):
    """Connects to a thread that serves, plain or by TLS."""

    def connect(serve):
        def serve_by(sock):
            if not tls[0]:
                return serve(sock)
            with tls[0]["ssl"].wrap_socket(sock, server_side=True) as sock:
                serve(sock)

        sock = socket.create_connection(peer(serve_by))
        if tls[0]:
            sock = tls[1]["ssl"].wrap_socket(sock, server_hostname="localhost")
        sock.settimeout(mode)
        return sock

    return connect


def test_all_up_to_the_end(connect, data, pool):
    def serve(sock):
        sock.sendall(data)
        end(sock)

    with connect(serve) as sock:
        view = ropewalk.recv_all(sock, pool)
    assert view == data
    del view


def test_exactly_what_was_asked_for(connect, data, pool):
    def serve(sock):
        sock.sendall(data)
        sock.recv(1)

    with connect(serve) as sock:
        first, rest = ropewalk.recv_exactly(sock, 3, pool), ropewalk.recv_exactly(sock, len(data) - 3, pool)
        assert rest.copied_bytes == rest.mapped_bytes == 0
        assert ropewalk.recv_exactly(sock, 0, pool) == b""
        ropewalk.send_all(sock, b"!")
    assert bytes(first) + bytes(rest) == data
    del first, rest


def test_sending_a_rope_a_cursor_and_a_buffer(connect, data):
    got = bytearray()

    def serve(sock):
        while more := sock.recv(1 << 16):
            got.extend(more)
            if got.endswith(b"enough"):
                return

    rope = ropewalk.Rope()
    for start in range(0, len(data), 100_000):
        rope.push(data[start : start + 100_000])
    with connect(serve) as sock:
        cursor = rope.cursor(1_000)
        ropewalk.send_all(sock, cursor)
        assert cursor.remaining == 0 and len(rope) == len(data)
        ropewalk.send_all(sock, rope)
        assert not rope
        ropewalk.send_all(sock, bytearray(b"enough"))
        try:
            ropewalk.recv_all(sock)
        except OSError:
            pass  # TLS may end without saying so
    assert got == data[1_000:] + data + b"enough"


def test_one_byte_at_a_time(connect, pool):
    message = bytes(range(256)) * 4

    def serve(sock):
        for byte in message:
            sock.send(bytes([byte]))
        end(sock)

    with connect(serve) as sock:
        assert ropewalk.recv_all(sock, pool) == message


def test_a_stream_that_ends_before(connect, pool):
    def serve(sock):
        sock.sendall(b"not all")
        end(sock)

    with connect(serve) as sock, pytest.raises(EOFError, match="7 of 8 bytes") as ended:
        ropewalk.recv_exactly(sock, 8, pool)
    assert ended.value.rope == b"not all"
    del ended


def test_a_reset_loses_nothing_that_had_arrived(peer, pool):
    arrived = threading.Event()

    def serve(sock):
        sock.sendall(b"arrived")
        arrived.wait(10)
        reset(sock)

    with socket.create_connection(peer(serve)) as sock:
        rope = ropewalk.Rope(pool)
        assert rope.recv_from(sock) == 7
        arrived.set()
        with pytest.raises(ConnectionResetError) as broken:
            ropewalk.recv_all(sock, pool)
        assert broken.value.rope == b"" and rope == b"arrived"
    del broken


def test_a_limit_loses_nothing(connect, pool):
    def serve(sock):
        sock.sendall(b"x" * 100_000)
        sock.recv(1)

    with connect(serve) as sock:
        with pytest.raises(ropewalk.LimitExceeded) as refused:
            ropewalk.recv_all(sock, pool, limit=50_000)
        rope = refused.value.rope
        held = len(rope)
        for _ in range(3):
            with pytest.raises(ropewalk.LimitExceeded):
                rope.recv_from(sock)
        assert len(rope) == held
        rope.limit = None
        # Of what is encrypted, a byte may have to be received to know that there is one.
        assert len(rope) in (50_000, 50_001)
        assert len(ropewalk.recv_exactly(sock, 100_000 - len(rope), pool)) == 100_000 - len(rope)
        ropewalk.send_all(sock, b"!")
    del refused, rope


def test_a_pool_that_others_fill_loses_nothing(connect, pool):
    def serve(sock):
        sock.sendall(b"x" * 100_000)
        sock.recv(1)

    held = ropewalk.Rope(pool)
    held.reserve(64 << 20)
    with connect(serve) as sock:
        rope = ropewalk.Rope(pool)
        select.select([sock], [], [], 60)
        for _ in range(3):
            with pytest.raises(ropewalk.PoolFull):
                rope.recv_from(sock)
        assert not rope
        held.clear()
        assert ropewalk.recv_exactly(sock, 100_000, pool) == b"x" * 100_000
        ropewalk.send_all(sock, b"!")
    del held, rope


def test_a_socket_on_which_nothing_has_arrived_takes_no_page(connect, pool):
    go = threading.Event()

    def serve(sock):
        go.wait(60)
        sock.sendall(b"x" * 100)
        end(sock)

    with connect(serve) as sock:
        sock.setblocking(False)
        rope = ropewalk.Rope(pool)
        for _ in range(3):
            with pytest.raises((BlockingIOError, ssl.SSLWantReadError)):
                rope.recv_from(sock)
            assert pool.stats().in_use == 0
        go.set()
        assert ropewalk.recv_exactly(sock, 100, pool) == b"x" * 100


def test_a_stream_of_exactly_the_limit_is_taken(connect, pool):
    def serve(sock):
        sock.sendall(b"x" * 50_000)
        end(sock)

    with connect(serve) as sock:
        assert len(ropewalk.recv_all(sock, pool, limit=50_000)) == 50_000


def test_a_full_pool_loses_nothing(connect):
    pool = ropewalk.Pool(capacity=1 << 20)

    def serve(sock):
        sock.sendall(bytes(3 << 20))
        sock.recv(1)

    with connect(serve) as sock:
        with pytest.raises(ropewalk.PoolFull) as refused:
            ropewalk.recv_all(sock, pool)
        had = len(refused.value.rope)
        assert 900_000 < had < 1_100_000
        refused.value.rope.clear()
        left = (3 << 20) - had
        while left:
            left -= len(ropewalk.recv_exactly(sock, min(left, 500_000), pool))
        ropewalk.send_all(sock, b"!")


@pytest.mark.parametrize("mode", [30.0], indirect=True)
def test_a_timeout_is_one_for_the_whole(connect, pool):
    def serve(sock):
        for _ in range(20):
            sock.send(b"x")
            time.sleep(0.05)
        end(sock)

    with connect(serve) as sock:
        sock.settimeout(0.3)
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="timed out after 0.3 s") as late:
            ropewalk.recv_exactly(sock, 100, pool)
        assert 0.25 < time.monotonic() - start < 0.9
        assert 1 <= len(late.value.rope) < 20
        sock.settimeout(None)
        assert ropewalk.recv_all(sock, pool) == b"x" * (20 - len(late.value.rope))
    del late


def test_a_timeout_ends_a_stream_that_never_pauses(pool):
    class Late:
        """Always ready, by when its time is over."""
        def fileno(self):
            return file.fileno()

        def gettimeout(self):
            return 1e-9

    with open("/dev/zero", "r+b", buffering=0) as file:
        with pytest.raises(TimeoutError):
            ropewalk.recv_all(Late(), pool)
        with pytest.raises(TimeoutError):
            ropewalk.send_all(Late(), b"x")


@pytest.mark.parametrize("receive", [
    lambda sock: ropewalk.Rope().recv_from(sock), ropewalk.recv_all, lambda sock: ropewalk.recv_exactly(sock, 5),
])
def test_signals_have_their_handlers_run(pair, receive):
    class Interrupted(Exception):
        pass

    def handler(signum, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(Interrupted):
            receive(pair[0])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_selectors_loop(pair, data):
    import selectors

    one, other = pair
    for sock in pair:
        sock.setblocking(False)
    source, got = ropewalk.Rope(), ropewalk.Rope()
    source.push(data)
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_WRITE, lambda: cursor.send(one))
        selector.register(other, selectors.EVENT_READ, lambda: got.recv_from(other))
        cursor = source.cursor()
        while len(got) < len(data):
            for key, _ in selector.select(10):
                key.data()
            if not cursor.remaining and one.fileno() in selector.get_map():
                selector.unregister(one)
    assert got.finalize() == data


def test_other_threads_run_meanwhile(pair):
    """The GIL is released around a receive that waits, and one rope's calls come one after the other."""
    one, other = pair
    rope, received = ropewalk.Rope(), []
    threads = [threading.Thread(target=lambda: received.append(rope.recv_from(other))) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    for _ in threads:
        one.send(os.urandom(10))
        time.sleep(0.02)
    one.shutdown(socket.SHUT_WR)  # one call may have had what two were to get
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    while len(rope) < 40:
        received.append(rope.recv_from(other))
    assert sum(received) == len(rope) == 40


@pytest.mark.parametrize("receive", [ropewalk.recv_all, lambda sock, pool: ropewalk.recv_exactly(sock, 100, pool)])
def test_whatever_ends_a_receive_what_had_arrived_is_told(pair, pool, receive):
    """A handler that raises, and a socket that another thread closes: neither is an error of the socket's."""
    class Interrupted(Exception):
        pass

    def handler(signum, frame):
        raise Interrupted

    class Closed:
        def __init__(self):
            self.closed = False

        def fileno(self):
            return -1 if self.closed else pair[0].fileno()

    sock = Closed()
    pair[0].setblocking(False)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        for how in (Interrupted, ValueError):
            pair[1].sendall(b"arrived")

            def end():
                while select.select([pair[0]], [], [], 0)[0]:
                    time.sleep(0.01)
                if how is Interrupted:
                    signal.setitimer(signal.ITIMER_REAL, 0.01)
                else:
                    sock.closed = True
                    pair[1].sendall(b"wakes the other thread")

            thread = threading.Thread(target=end)
            thread.start()
            with pytest.raises(how) as ended:
                receive(sock, pool)
            thread.join()
            assert ended.value.rope == b"arrived"
            del ended
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


WITHOUT_MEMORY = """
import asyncio, os, ropewalk, ropewalk.asyncio

pool, size = ropewalk.Pool(capacity=48 << 20), 16 << 20
# Every second mebibyte is taken: what is received is not contiguous, and has to be mapped or copied.
ropes = [ropewalk.Rope(pool) for _ in range(48)]
for rope in ropes:
    rope.extend(bytes(1 << 20))
del ropes[::2], rope

payload, stream = b"x" * size, os.memfd_create("stream")
os.pwrite(stream, payload, 0)

# Neither a map nor a copy can be had.
without_memory = lambda call: refused(call, 6 << 20)
""" + REFUSED


def test_without_memory_for_a_view_nothing_is_lost():
    python(WITHOUT_MEMORY + """
error = without_memory(lambda: ropewalk.recv_all(stream, pool))
assert error.rope.finalize() == payload
""")


@pytest.mark.parametrize("count", ["-1", "size - 1"])
def test_without_memory_for_a_view_nothing_is_lost_of_a_stream(count):
    python(WITHOUT_MEMORY + f"""
async def main():
    reader = ropewalk.asyncio.StreamReader(pool)
    for _ in range(size >> 20):
        reader.feed_data(b"x" * (1 << 20))
    reader.feed_eof()
    read = reader.read_view({count})
    assert isinstance(without_memory(lambda: read.send(None)), MemoryError)
    assert await reader.read_view() == payload and reader.at_eof()

asyncio.run(main())
""")


@pytest.mark.parametrize("receive", ["recv_from", "recvmsg"])
def test_threads_that_wait_for_the_same_bytes_do_not_hold_up_a_rope(receive):
    """All of them are woken by one byte, and one gets it: the others wait again, without the rope's lock."""
    python("""
        import ropewalk, socket, sys, threading, time
        rope, (one, other) = ropewalk.Rope(), socket.socketpair()
        work = lambda: getattr(rope, sys.argv[1])(other)
        threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        for received in range(1, 8):
            time.sleep(0.1)
            one.send(b"x")
            while len(rope) < received:
                time.sleep(0.001)
        assert rope.find(b"x") == 0 and len(rope.finalize()) == 7
        one.close()
        for thread in threads:
            thread.join()
    """, receive)


SENDS = {
    "rope.send_to": lambda rope: rope.send_to,
    "rope.sendmsg": lambda rope: rope.sendmsg,
    "cursor.send": lambda rope: rope.cursor().send,
    "cursor.sendmsg": lambda rope: rope.cursor().sendmsg,
}


def ends(kind):
    """Two descriptors, blocking: what is written to the first is read from the second."""
    if kind == "pipe":
        return os.pipe()[::-1]
    one, other = socket.socketpair() if kind == "socket" else tcp()
    return one.detach(), other.detach()


def tcp():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return socket.create_connection(listener.getsockname()), listener.accept()[0]


@pytest.mark.parametrize("kind", ["socket", "tcp", "pipe"])
@pytest.mark.parametrize("send", SENDS)
def test_a_send_that_waits_holds_up_no_other_call(kind, send, data):
    """The peer does not read until other threads have used the rope."""
    if kind == "pipe" and "sendmsg" in send:
        pytest.skip("sendmsg is for sockets")
    python("""
        import os, ropewalk, sys, threading, time
        sys.path.insert(0, sys.argv[3])
        from test_blocking import SENDS, ends

        to, peer = ends(sys.argv[1])
        rope, data = ropewalk.Rope(), os.urandom(5_000_000)
        rope.push(data)
        send = SENDS[sys.argv[2]](rope)
        source = rope if sys.argv[2].startswith("rope") else send.__self__
        left = (lambda: len(rope)) if source is rope else (lambda: source.remaining)

        def work():
            while left():
                send(to)

        thread = threading.Thread(target=work)
        thread.start()
        before, now = -1, left()
        while before != now or now == len(data):
            time.sleep(0.1)  # until nothing more goes
            before, now = now, left()
        rope.push(b"behind")
        assert rope.find(b"behind") == len(rope) - 6 and repr(source) and 0 < left() < len(data)
        got, want = bytearray(), len(data) + (6 if source is rope else 0)
        while len(got) < want:
            got += os.read(peer, 1 << 20)
        thread.join()
        assert got == (data + b"behind")[:want] and not left()
    """, kind, send, os.path.dirname(__file__))


@pytest.mark.parametrize("kind", ["socket", "pipe"])
def test_a_signal_ends_a_send_that_waits(kind):
    """Its handler runs, and what was sent has left the rope."""
    to, peer = ends(kind)
    rope, data = ropewalk.Rope(), os.urandom(5_000_000)
    rope.push(data)

    def handler(signum, frame):
        raise ZeroDivisionError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(ZeroDivisionError):
            ropewalk.send_all(to, rope)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    os.close(to)
    sent = b"".join(iter(lambda: os.read(peer, 1 << 20), b""))
    os.close(peer)
    assert sent and sent + bytes(rope) == data


def test_a_flag_that_forbids_to_wait_is_heeded(pair):
    one, other = pair
    rope = ropewalk.Rope()
    with pytest.raises(BlockingIOError):
        rope.recvmsg(one, flags=socket.MSG_DONTWAIT)
    rope.push(bytes(5_000_000))
    for source in (rope, rope.cursor()):
        with pytest.raises(BlockingIOError):
            while True:
                source.sendmsg(one, flags=socket.MSG_DONTWAIT)


@pytest.mark.parametrize("kind", ["socket", "tcp", "pipe"])
def test_an_empty_rope_waits_for_nothing(kind):
    to, peer = ends(kind)
    os.set_blocking(to, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(to, bytes(4096))
    os.set_blocking(to, True)
    rope = ropewalk.Rope()
    assert rope.send_to(to) == 0 == rope.cursor().send(to)
    os.close(to), os.close(peer)
