"""The room behind a rope, handed out writable."""

import gc
import weakref

import pytest

import ropewalk


def write(rope, data):
    with rope.get_buffer() as room:
        room[: len(data)] = data
    return rope.buffer_updated(len(data))


def test_what_is_written_is_appended_without_a_copy(pool):
    rope = ropewalk.Rope(pool)
    rope.extend(b"before, ")
    assert write(rope, b"behind") == 14 == len(rope)
    assert rope == b"before, behind"


def test_asked_again_without_an_update_it_is_the_same_room(pool):
    rope = ropewalk.Rope(pool)
    first = rope.get_buffer()
    again = rope.get_buffer(100)
    first[:3] = b"one"
    assert bytes(again[:3]) == b"one" and len(first) == len(again)
    del first, again
    with rope.get_buffer() as third:
        assert bytes(third[:3]) == b"one"
    assert len(rope) == 0


def test_a_kept_export_is_refused_rather_than_aliased(pool):
    rope = ropewalk.Rope(pool)
    kept = rope.get_buffer()
    kept[:4] = b"four"
    rope.buffer_updated(4)
    assert len(rope) == 4
    for call in (
        rope.finalize, rope.clear, rope.cursor, rope.segments, rope.read, lambda: bytes(rope), lambda: rope[:2],
        lambda: rope.split_to(2), lambda: rope.push(b"x"), lambda: rope.append(ropewalk.Rope()), lambda: rope.find(b"f"),
        lambda: ropewalk.Rope().append(rope), lambda: rope.advance(1), lambda: rope.reserve(1), lambda: rope == b"four",
    ):
        with pytest.raises(BufferError, match="1 writable exports"):
            call()
    copy = kept[2:]
    kept.release()
    with pytest.raises(BufferError):
        rope.finalize()
    copy.release()
    assert rope.finalize() == b"four"


def test_receiving_goes_on_while_an_export_lives(pool):
    rope, kept = ropewalk.Rope(pool), []
    for data in (b"one, ", b"two, ", b"three"):
        room = rope.get_buffer()
        room[: len(data)] = data
        rope.buffer_updated(len(data))
        kept.append(room)
    assert len(rope) == 15
    del room
    kept.clear()
    assert rope == b"one, two, three"


def test_an_export_behind_a_full_room_stops_receiving(pool):
    rope = ropewalk.Rope(pool)
    kept = rope.get_buffer()
    rope.buffer_updated(len(kept))
    with pytest.raises(BufferError):
        rope.get_buffer()
    kept.release()
    rope.get_buffer().release()


def test_an_exporter_without_room_exports_nothing(pool):
    rope = ropewalk.Rope(pool)
    room = rope.get_buffer()
    tail = room.obj
    room.release()
    rope.clear()
    with pytest.raises(BufferError):
        memoryview(tail)
    rope.get_buffer().release()
    memoryview(tail).release()


def test_more_than_was_lent_is_refused(pool):
    rope = ropewalk.Rope(pool)
    with pytest.raises(ValueError, match="1 bytes are beyond the 0 that were lent"):
        rope.buffer_updated(1)
    room = len(rope.get_buffer())
    with pytest.raises(ValueError):
        rope.buffer_updated(room + 1)
    with pytest.raises(OverflowError):
        rope.buffer_updated(-1)


def test_rooms_grow_with_what_comes_and_shrink_again(pool):
    rope, sizes = ropewalk.Rope(pool), []
    for _ in range(6):
        room = len(rope.get_buffer())
        rope.buffer_updated(room)
        sizes.append(room)
    assert sizes == sorted(sizes) and sizes[0] <= 16 << 10 and sizes[-1] == 1 << 20
    rope.clear()
    for _ in range(20):
        write(rope, b"little")
        rope.clear()
    assert len(rope.get_buffer()) <= 4096


def test_a_million_small_reads_are_few_segments(pool):
    rope = ropewalk.Rope(pool)
    for _ in range(10_000):
        write(rope, b"x")
    assert len(rope.segments()) <= 3 and rope == b"x" * 10_000


def test_beyond_the_limit_one_byte_is_lent(pool):
    rope = ropewalk.Rope(pool, limit=5)
    with rope.get_buffer() as room:
        assert len(room) == 5
        room[:] = b"hello"
    rope.buffer_updated(5)
    assert rope.refused is None
    assert len(rope.get_buffer()) == 1
    assert isinstance(rope.refused, ropewalk.LimitExceeded) and rope.refused.limit == 5
    write(rope, b"!")
    assert rope == b"hello!"
    rope.read(6)
    assert len(rope.get_buffer()) == 5 and rope.refused is None


def test_beyond_the_pool_one_byte_is_lent():
    pool = ropewalk.Pool(capacity=1 << 20)
    held, rope = ropewalk.Rope(pool), ropewalk.Rope(pool)
    held.reserve(1 << 20)
    assert len(rope.get_buffer()) == 1
    assert isinstance(rope.refused, ropewalk.PoolFull) and rope.refused.capacity == 1 << 20
    write(rope, b"!")
    held.clear()
    assert len(rope.get_buffer()) > 1 and rope.refused is None
    write(rope, b"?")
    assert rope == b"!?"


def test_an_emptied_rope_holds_no_page(pool):
    rope = ropewalk.Rope(pool)
    write(rope, b"a message")
    assert rope.read(9) == b"a message"
    assert pool.stats().in_use == 0


def test_an_export_keeps_the_rope_and_nothing_leaks(pool):
    rope = ropewalk.Rope(pool)
    gone = weakref.ref(rope)
    room = rope.get_buffer()
    del rope
    gc.collect()
    room[:3] = b"yes"
    assert gone() is not None and bytes(room[:3]) == b"yes"
    del room
    assert gone() is None
