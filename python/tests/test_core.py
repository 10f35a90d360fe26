import array
import errno
import gc
import os
import socket
import sys
import weakref

import pytest

import ropewalk
from conftest import address


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
    assert list(view) == list(b"0123456789") and not ropewalk.View()
    del rope, view
    assert exported[9] == ord("9"), "an export keeps the pages"


@pytest.mark.parametrize("index", [5, -6, sys.maxsize, -sys.maxsize - 1, 1 << 64, -1 << 64])
def test_an_index_beyond_a_view_is_an_index_error(index):
    with pytest.raises(IndexError):
        ropewalk.View(b"bytes")[index]


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


@pytest.mark.parametrize("make", [lambda rope: rope, lambda rope: rope.finalize(), lambda rope: rope.split_to(5000)])
def test_reference_cycles_through_what_was_pushed_are_collected(make):
    class Source(bytearray):
        pass

    source, rope = Source(b"x" * 5000), ropewalk.Rope()
    rope.push(source)
    source.made = make(rope)
    gone = weakref.ref(source)
    del source, rope
    assert gone() is not None
    gc.collect()
    assert gone() is None


def test_the_collector_takes_nothing_that_others_share():
    class Source(bytearray):
        pass

    for share in (lambda rope: rope[:], lambda rope: rope.cursor(), lambda rope: rope.segments()[0],
                  lambda rope: rope.split_to(10)):
        source, rope = Source(b"x" * 5000), ropewalk.Rope()
        rope.push(source)
        kept = share(rope)
        source.rope = rope
        del source, rope
        gc.collect()
        if isinstance(kept, ropewalk.Cursor):
            assert kept.remaining == 5000
        else:
            assert bytes(kept[:10]) == b"x" * 10
    same = Source(b"y" * 5000)
    rope = rope_of(same, same)
    same.rope = rope
    gc.collect()
    assert bytes(rope) == b"y" * 10_000
    rope.clear()
