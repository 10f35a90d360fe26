import array
import errno
import gc
import mmap
import os
import socket
import sys
import weakref

import pytest

import ropewalk
from conftest import address
from test_processes import python


def rope_of(*pieces, pool=None):
    rope = ropewalk.Rope(pool)
    for piece in pieces:
        rope.push(piece)
    return rope


def test_stats_are_a_named_tuple_with_the_pools_options(pool):
    stats = pool.stats()
    assert stats.capacity == 64 << 20 and stats.in_use == 0 and stats.backing == "memfd" and not stats.reduced
    rope = ropewalk.Rope(pool)
    rope.extend(bytes(100_000))
    assert 100_000 <= pool.stats().in_use < 200_000
    del rope
    assert pool.trim() >= 100_000
    assert pool.stats().warm == 0


def test_a_pool_that_retains_nothing_keeps_nothing():
    pool = ropewalk.Pool(retain=0, decay=1.5)
    ropewalk.Rope(pool).extend(bytes(100_000))
    assert pool.stats().warm == 0


@pytest.mark.parametrize("options", [{"capacity": 0}, {"decay": -1.0}, {"decay": float("nan")}])
def test_senseless_pools_are_refused(options):
    with pytest.raises(ValueError):
        ropewalk.Pool(**options)


@pytest.mark.parametrize(
    "buffer",
    [b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview")[2:], array.array("d", [1.5, 2.5]), b""],
)
def test_any_buffer_is_pushed_without_a_copy(buffer):
    rope = rope_of(buffer)
    view = rope.finalize()
    assert view == bytes(memoryview(buffer).cast("B"))
    assert not view or address(view) == address(buffer)


def test_what_is_no_contiguous_buffer_is_refused():
    with pytest.raises(TypeError):
        rope_of("text")
    with pytest.raises(BufferError):
        rope_of(memoryview(b"0123456789")[::2])


def test_a_pushed_bytearray_is_exported_as_long_as_the_rope_has_it():
    source = bytearray(b"0123456789")
    before = sys.getrefcount(source)
    rope = rope_of(source)
    rest = rope[5:]
    for holder in (rope, rest):
        with pytest.raises(BufferError):
            source.append(0)
        holder.clear()
    source.append(0)
    assert sys.getrefcount(source) == before


def test_reference_counts_return_to_the_start(pair):
    source = bytearray(b"x" * 10_000)
    before = sys.getrefcount(source)
    rope = rope_of(source, b"between", source)
    cursor, part, segments = rope.cursor(7), rope[3:20_000], rope.segments()
    cursor.send(pair[0])
    rope.send_to(pair[0])
    head = part.split_to(5_000)
    view = head.finalize()
    view[10:20], bytes(part), part == part, part.find(b"xb")
    part.append(rope)
    del rope, cursor, part, segments, head, view
    assert sys.getrefcount(source) == before
    source.clear()


def test_what_a_segment_frees_may_use_the_rope():
    class Source(bytearray):
        def __del__(self):
            seen.append(len(rope))

    seen, rope = [], ropewalk.Rope()
    for free in (rope.clear, lambda: rope.advance(4), lambda: rope.read(4), lambda: rope.finalize()[:0]):
        rope.push(Source(b"four"))
        free()
        gc.collect()
    assert seen == [0, 0, 0, 0]


def test_slices_share_the_memory():
    source = bytes(range(200))
    rope = rope_of(source[:100], source[100:])
    assert len(rope) == 200
    for part in (slice(5, 150), slice(None), slice(-10, None), slice(150, 5), slice(300, 400)):
        assert bytes(rope[part]) == source[part]
    with pytest.raises(TypeError):
        rope[0]
    with pytest.raises(TypeError):
        rope[::2]


def test_split_find_advance_read_and_append():
    rope = rope_of(b"GET / HTTP/1.1\r", b"\nHost: x\r\n", b"\r\nbody")
    assert rope.find(b"\r\n") == 14
    assert rope.find(b"\r\n", 15) == 23
    assert rope.find(b"none") is None and rope.find(b"\r\n", 1000) is None
    line = rope.split_to(14)
    rope.advance(2)
    assert line == b"GET / HTTP/1.1" and rope.read(4) == b"Host"
    rope.append(line)
    assert len(line) == 0 and bytes(rope) == b": x\r\n\r\nbodyGET / HTTP/1.1"
    assert rope.read() == b": x\r\n\r\nbodyGET / HTTP/1.1" and not rope
    for call in (rope.split_to, rope.advance):
        with pytest.raises(IndexError, match="1 is beyond the rope's 0 bytes"):
            call(1)
    with pytest.raises(ValueError):
        rope.append(rope)
    rope.push_front(b"front")
    assert rope == b"front" and rope == rope[:] and rope != b"other" and rope != 5


def test_a_view_lies_at_one_address_for_all_readers(pool, tmp_path):
    import hashlib
    import json
    import pickle

    import numpy
    import pyarrow

    rope = ropewalk.Rope(pool)
    text = json.dumps({"answer": list(range(10_000))}).encode()
    rope.extend(text)
    view = rope.finalize()
    assert view.copied_bytes == view.mapped_bytes == 0 and len(view) == len(text)
    there = address(view)
    assert address(memoryview(view)) == there
    assert numpy.frombuffer(view, numpy.uint8).__array_interface__["data"][0] == there
    assert pyarrow.py_buffer(view).address == there
    assert address(view[100:]) == there + 100
    assert hashlib.sha256(view).digest() == hashlib.sha256(text).digest()
    # json takes str, bytes and bytearray only; the text is decoded from where it lies.
    assert json.loads(view.decode()) == json.loads(str(memoryview(view), "utf-8")) == json.loads(text)
    with open(tmp_path / "file", "wb") as file:
        assert file.write(view) == len(text)
    assert (tmp_path / "file").read_bytes() == text
    buffers = []
    pickled = pickle.dumps(view, protocol=5, buffer_callback=buffers.append)
    assert len(pickled) < 200 and address(buffers[0].raw()) == there
    restored = pickle.loads(pickled, buffers=buffers)
    assert restored == view and address(restored) == there
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(view, protocol)) == view


def test_a_view_is_read_only_and_hashed_like_bytes(pool):
    rope = ropewalk.Rope(pool)
    rope.extend(b"0123456789")
    view = rope.finalize()
    exported = memoryview(view)
    assert exported.readonly
    with pytest.raises(TypeError):
        exported[0] = 1
    assert view[0] == ord("0") and view[-1] == ord("9") and view[2:4] == b"23" and bytes(view) == view.tobytes()
    with pytest.raises(IndexError):
        view[10]
    with pytest.raises(TypeError):
        view["0"]
    assert {b"0123456789": "found"}[view] == "found"
    assert list(view) == list(b"0123456789") and not ropewalk.View(b"")
    del rope, view
    assert exported[9] == ord("9"), "an export keeps the pages"


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_an_index_beyond_a_view_is_an_index_error():
    for index in (5, -6, sys.maxsize, -sys.maxsize - 1, 1 << 64, -1 << 64, 10**5000, -(10**5000)):
        with pytest.raises(IndexError, match="is out of range for 5 bytes"):
            ropewalk.View(b"bytes")[index]


def test_a_rope_has_a_size_for_python():
    """One buffer, pushed often, needs no memory for as many bytes as Python cannot count."""
    MAP_NORESERVE = 0x4000
    try:
        once = mmap.mmap(-1, 1 << 45, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except OSError as refused:
        pytest.skip(f"Valgrind has no such addresses: {refused}")
    rope = rope_of(once)
    for _ in range(17):
        rope.append(rope[:])
    assert len(rope) == 1 << 62
    other = rope[:]
    other.push(b"x")
    for add in (lambda: rope.append(other), lambda: other.append(rope), lambda: rope[:].append(other)):
        with pytest.raises(OverflowError, match="at most sys.maxsize"):
            add()
    assert (len(rope), len(other)) == (1 << 62, (1 << 62) + 1), "nothing is lost"
    rope.append(other[2:])
    assert len(rope) == sys.maxsize and rope[-1:] == b"x" and len(other) == (1 << 62) + 1
    for add in (rope.push, rope.push_front, rope.extend):
        with pytest.raises(OverflowError, match=f"a rope of {sys.maxsize} bytes takes no 1 more"):
            add(b"y")
    one, other = socket.socketpair()
    with one, other:
        one.send(b"y")
        for receive in (rope.recv_from, rope.recvmsg):
            with pytest.raises(ropewalk.LimitExceeded):
                receive(other)
    assert rope.limit is None and len(rope.get_buffer()) == 1 and isinstance(rope.refused, ropewalk.LimitExceeded)
    assert rope.cursor(sys.maxsize - 1).remaining == 1 and rope.find(b"\0") == 0
    for copy in (bytes, ropewalk.Rope.finalize):
        with pytest.raises((OverflowError, MemoryError)):
            copy(rope)
    assert len(rope) == sys.maxsize


def test_pieces_that_were_pushed_are_copied_into_a_view():
    view = rope_of(b"one", b"two").finalize()
    assert view == b"onetwo" and view.copied_bytes == 6


def test_receiving_reports_nothing_the_end_and_the_most(pool, pair):
    one, other = pair
    other.setblocking(False)
    rope = ropewalk.Rope(pool)
    with pytest.raises(BlockingIOError) as refused:
        rope.recv_from(other)
    assert refused.value.errno == errno.EAGAIN
    one.sendall(b"one message, the next")
    assert rope.recv_from(other, max=11) == 11 and rope == b"one message"
    assert rope.recv_from(other.fileno(), 0) == 0
    assert rope.recv_from(other) == 10
    one.close()
    assert rope.recv_from(other) == 0
    with pytest.raises(OSError) as bad:
        rope.recv_from(10**6)
    assert bad.value.errno == errno.EBADF
    with pytest.raises(TypeError):
        rope.recv_from("no socket")


def test_a_limit_is_an_exception_with_the_numbers(pool, pair):
    one, other = pair
    one.sendall(b"far too much")
    rope = ropewalk.Rope(pool, limit=3)
    assert rope.limit == 3 and rope.recv_from(other) == 3
    with pytest.raises(ropewalk.LimitExceeded, match="limit of 3 bytes.*raise Rope.limit to go on") as refused:
        rope.recv_from(other)
    assert isinstance(refused.value, OSError) and (refused.value.limit, refused.value.held) == (3, 3)
    assert rope == b"far"
    rope.limit = None
    assert rope.recv_from(other) == 9, "nothing was taken out of the kernel"


def test_a_full_pool_is_an_exception_with_the_numbers(pair):
    pool = ropewalk.Pool(capacity=1 << 20)
    one, other = pair
    held = ropewalk.Rope(pool)
    held.reserve(1 << 20)
    one.sendall(b"x" * 10_000)
    rope = ropewalk.Rope(pool)
    with pytest.raises(ropewalk.PoolFull) as refused:
        while True:
            rope.recv_from(other)
    assert isinstance(refused.value, MemoryError)
    assert (refused.value.capacity, refused.value.in_use) == (1 << 20, 1 << 20)
    with pytest.raises(ropewalk.PoolFull, match="drop ropes or raise Pool's capacity"):
        rope.reserve(4097)
    held.clear()
    while len(rope) < 10_000:
        rope.recv_from(other)
    assert rope == b"x" * 10_000


def test_who_waits_for_room_is_told_by_a_descriptor():
    import select

    pool = ropewalk.Pool(capacity=1 << 20)
    room = pool.wait_for_room(4096)
    assert room.ready()
    del room  # its page is reserved as long as it lives
    held = ropewalk.Rope(pool)
    held.reserve(1 << 20)
    room = pool.wait_for_room(4096)
    assert not room.ready() and not select.select([room], [], [], 0)[0]
    assert pool.stats().waiting == 1
    held.clear()
    assert select.select([room], [], [], 5)[0] and room.ready()
    assert pool.stats().waiting == 0
    # It is reserved: no other rope gets it, until it is dropped.
    rest = ropewalk.Rope(pool)
    with pytest.raises(ropewalk.PoolFull):
        rest.reserve(1 << 20)
    rest.add_room(room)
    rest.reserve(4096)
    with pytest.raises(ValueError):
        rest.add_room(room)
    with pytest.raises(ropewalk.PoolFull):
        pool.wait_for_room((1 << 20) + 1).ready()


def test_sending_from_an_offset(pair):
    one, other = pair
    one.setblocking(False)
    data = os.urandom(3_000_000)
    rope = rope_of(data)
    cursor, got = rope.cursor(position=1_000_000), bytearray()
    while cursor.remaining:
        try:
            sent = cursor.send(one)
            assert cursor.position == len(data) - cursor.remaining and sent > 0
        except BlockingIOError:
            got += other.recv(1 << 20)
    one.close()
    while more := other.recv(1 << 20):
        got += more
    assert got == data[1_000_000:] and len(rope) == len(data)
    cursor.position = 5
    assert cursor.remaining == len(data) - 5
    with pytest.raises(IndexError):
        cursor.position = len(data) + 1
    with pytest.raises(IndexError):
        rope.cursor(len(data) + 1)


def test_a_cursor_sees_the_rope_as_it_was(pair):
    rope = rope_of(b"as it was")
    cursor = rope.cursor()
    rope.clear()
    rope.push(b"anew")
    assert cursor.send(pair[0]) == 9 and pair[1].recv(100) == b"as it was"
    assert rope.cursor().remaining == 4


def test_more_segments_than_a_call_may_name(pair):
    one, other = pair
    pieces = [b"%d," % index for index in range(5 * os.sysconf("SC_IOV_MAX"))]
    for send in ("send_to", "cursor"):
        rope = rope_of(*pieces)
        sender = rope if send == "send_to" else rope.cursor()
        sent, got = 0, b""
        while sent < len(b"".join(pieces)):
            sent += sender.send_to(one)
            got += other.recv(1 << 20)
        while len(got) < sent:
            got += other.recv(1 << 20)
        assert got == b"".join(pieces)


def test_descriptors_go_along(pair, tmp_path):
    one, other = pair
    with open(tmp_path / "passed", "w+") as file:
        assert rope_of(b"with a file").sendmsg(one, [file, file.fileno()]) == 11
        file.write("through both")
        file.flush()
    rope = ropewalk.Rope()
    received, fds, truncated = rope.recvmsg(other)
    assert (received, len(fds), truncated) == (11, 2, False)
    assert not os.get_inheritable(fds[0]) and os.pread(fds[1], 100, 0) == b"through both"
    for fd in fds:
        os.close(fd)
    cursor = rope.cursor()
    with pytest.raises(ValueError):
        cursor.sendmsg(one, flags=getattr(socket, "MSG_ZEROCOPY", 0x4000000))
    assert cursor.sendmsg(one) == 11
    with pytest.raises(ValueError):
        ropewalk.Rope().sendmsg(one, [one])


def test_pipes_and_files_are_descriptors_too(tmp_path):
    readable, writable = os.pipe()
    rope_of(b"through a pipe").send_to(writable)
    os.close(writable)
    rope = ropewalk.Rope()
    assert rope.recv_from(readable) == 14 and rope.recv_from(readable) == 0
    os.close(readable)
    with open(tmp_path / "file", "wb") as file:
        while rope:
            rope.send_to(file)
    assert (tmp_path / "file").read_bytes() == b"through a pipe"


def test_a_broken_pipe_is_an_exception(pair):
    one, other = pair
    other.close()
    rope = rope_of(b"nobody is there")
    with pytest.raises(BrokenPipeError) as broken:
        rope.send_to(one)
    assert broken.value.errno == errno.EPIPE and rope == b"nobody is there"


@pytest.mark.parametrize("make", [
    lambda rope: rope, lambda rope: rope.finalize(), lambda rope: rope.split_to(10), lambda rope: rope.cursor(),
    lambda rope: rope[:], lambda rope: memoryview(rope.finalize()), lambda rope: ropewalk.View(rope.finalize()),
])
def test_reference_cycles_are_collected(make):
    class Node:
        pass

    class Source(bytearray):
        pass

    node = Node()
    rope = rope_of(b"x" * 5000)
    node.made, node.itself = make(rope), node
    gone = weakref.ref(node)
    del node
    gc.collect()
    assert gone() is None


class Source(bytearray):
    """Bytes that may refer to the rope they are pushed to, which the garbage collector has to find out."""

    taken = 0

    def __del__(self):
        Source.taken += 1


def whole(rope):
    return rope


SHARES = {
    "itself": whole,
    "a view": lambda rope: rope.finalize(),
    "a slice of a view": lambda rope: rope.finalize()[10:20],
    "all of it, split off": lambda rope: rope.split_to(5000),
    "some of it, split off": lambda rope: (rope.split_to(10), rope),
    "a slice": lambda rope: (rope[10:20], rope),
    "the first byte": lambda rope: rope[:1],
    "the last byte": lambda rope: rope[-1:],
    "the last byte of a view": lambda rope: rope.segments()[-1][-1:],
    "a slice of a slice": lambda rope: rope[10:][10:],
    "a cursor": lambda rope: rope.cursor(5),
    "two cursors": lambda rope: (rope.cursor(), rope.cursor(), rope),
    "segments": lambda rope: (rope.segments(), rope),
    "a view of a segment": lambda rope: memoryview(rope.segments()[0]),
    "another rope": lambda rope: (joined(rope[:100], rope[200:]), rope),
    "a rope with a view": lambda rope: rope_of(rope.segments()[0]),
    "a view of a view": lambda rope: ropewalk.View(rope.finalize()),
}


VIEWS = ("a view", "a slice of a view", "a view of a view")


def joined(*ropes):
    joined = ropewalk.Rope()
    for rope in ropes:
        joined.append(rope)
    return joined


@pytest.mark.parametrize("pushed", ["an object", "a part of it"])
@pytest.mark.parametrize("share", SHARES)
def test_reference_cycles_through_what_was_pushed_are_collected(share, pushed):
    source, rope = Source(b"x" * 5010), ropewalk.Rope()
    rope.push(source if pushed == "an object" else memoryview(source)[5:-5])
    source.made = SHARES[share](rope)
    gone = weakref.ref(source)
    del source, rope
    assert gone() is not None
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("pushed", ["an object", "a part of it", "both"])
@pytest.mark.parametrize("share", SHARES)
def test_the_collector_takes_nothing_that_is_held(share, pushed):
    """What was made of the rope is kept, and the rope is in a cycle with what was pushed, or the other way around."""
    for kept in ("made", "rope"):
        source, rope = Source(b"x" * 5000), ropewalk.Rope()
        if pushed != "a part of it":
            rope.push(source)
        if pushed != "an object":
            rope.push(memoryview(source))
        made = SHARES[share](rope)
        source.name, source.rope, source.made = "source", rope, made
        keep, before, held = made if kept == "made" else rope, Source.taken, weakref.ref(source)
        # A view of two segments is a copy of both, and the rope is empty then.
        has = len(rope) if kept == "rope" else pushed != "both" or share not in VIEWS
        del source, rope, made
        gc.collect()
        if has:
            assert Source.taken == before and held().name == "source" and held().made is not None
            assert all(all(byte in b"x" for byte in bytes(part)) for part in parts(keep))
        del keep
        gc.collect()
        assert held() is None and Source.taken == before + 1


def parts(kept):
    """Whatever of it has bytes to be read."""
    if isinstance(kept, (tuple, list)):
        return [part for one in kept for part in parts(one)]
    return [] if isinstance(kept, ropewalk.Cursor) else [kept]


def test_the_collector_agrees_with_a_model_of_who_holds_what():
    """Ropes, their slices, views and cursors at random, in cycles with what was pushed; some of them are kept."""
    import random

    for seed in range(60):
        chance = random.Random(seed)
        sources = [Source(b"%02d" % number * 50) for number in range(6)]
        # What each holder has: the numbers of its sources, in order.
        holders = []

        def hold(made, numbers):
            holders.append((made, numbers))
            chance.choice(sources).__dict__.setdefault("made", []).append(made)

        for number, source in enumerate(sources):
            rope = rope_of(chance.choice([source, memoryview(source)]))
            hold(rope, [number])
        for _ in range(20):
            index = chance.randrange(len(holders))
            made, numbers = holders[index]
            if not isinstance(made, ropewalk.Rope) or not numbers:
                continue
            at = chance.randrange(len(numbers) + 1)
            match chance.randrange(6):
                case 0:
                    hold(made[100 * at :], numbers[at:])
                case 1:
                    hold(made.split_to(100 * at), numbers[:at])
                    holders[index] = made, numbers[at:]
                case 2:
                    other, others = chance.choice(holders)
                    if isinstance(other, ropewalk.Rope) and other is not made:
                        made.append(other[:])
                        holders[index] = made, numbers + others
                case 3:
                    for segment, number in zip(made.segments(), numbers, strict=True):
                        hold(segment, [number])
                case 4:
                    hold(made.cursor(100 * at), numbers)
                case 5:
                    made.advance(100 * at)
                    holders[index] = made, numbers[at:]
        kept = chance.sample(holders, 2)
        refs = [weakref.ref(source) for source in sources]
        # Through a source, all that was made and given to it is held too.
        reached, more = set(), [number for _, numbers in kept for number in numbers]
        while more:
            number = more.pop()
            if number not in reached:
                reached.add(number)
                given = sources[number].__dict__.get("made", [])
                more += [n for made, numbers in holders if any(made is one for one in given) for n in numbers]
        del sources, source, holders, rope, made, numbers, hold
        index = at = other = others = segment = number = given = None
        gc.collect()
        for number in reached:
            assert refs[number]() is not None, (seed, number)
        for made, numbers in kept:
            if not isinstance(made, ropewalk.Cursor):
                assert bytes(made) == b"".join(b"%02d" % number * 50 for number in numbers), seed
        del kept, made, numbers
        gc.collect()
        assert not any(ref() for ref in refs), seed


def test_a_memoryview_may_be_released_once_it_was_pushed():
    source = bytearray(b"0123456789")
    with memoryview(source) as whole, whole[2:8].cast("H") as part:
        rope = rope_of(part)
    with pytest.raises(BufferError):
        source.append(0)
    assert rope == b"234567" and address(rope.segments()[0]) == address(source) + 2
    rope.clear()
    source.append(0)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="classes have no buffers there")
def test_a_class_with_a_buffer_is_held_until_the_rope_is_cleared():
    """A memoryview is behind it, which CPython must not clear."""
    class Exporter:
        def __buffer__(self, flags):
            return memoryview(self.data)

    source, rope = Exporter(), ropewalk.Rope()
    source.data = Source(b"x" * 5000)
    source.rope, gone = rope, weakref.ref(source.data)
    rope.push(source)
    rope.push(memoryview(source))
    del source
    gc.collect()
    assert bytes(rope) == b"x" * 10_000
    rope.clear()
    assert gone() is None


def test_a_memoryview_for_which_nothing_else_can_be_exported_is_held_until_the_rope_is_cleared():
    numpy = pytest.importorskip("numpy")

    class Array(numpy.ndarray):
        pass

    array = numpy.arange(10, dtype="u1").view(Array)[::2]
    rope = rope_of(memoryview(array)[:1])
    array.rope, gone, kept = rope, weakref.ref(array), weakref.ref(rope)
    del array
    gc.collect()
    del rope
    gc.collect()
    assert bytes(kept()) == b"\0"
    kept().clear()
    gc.collect()
    assert gone() is None


def test_an_empty_object_is_not_held():
    source = Source()
    source.view, before = ropewalk.View(source), Source.taken
    source.append(1)
    del source
    gc.collect()
    assert Source.taken == before + 1


def test_a_needle_for_which_there_is_no_memory_is_an_exception():
    python("""
        import mmap, resource, ropewalk
        MAP_NORESERVE = 0x4000
        size = 1 << 42
        needle = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        rope = ropewalk.Rope(ropewalk.Pool(capacity=1 << 20))
        rope.push(b"found")
        view = rope[:].finalize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30),) * 2)
        for look in (lambda: rope.find(needle), lambda: needle in rope, lambda: needle in view):
            try:
                look()
            except MemoryError:
                pass
            else:
                raise AssertionError
        assert rope.find(b"found") == 0
    """)
