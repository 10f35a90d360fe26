"""The room behind a rope, handed out writable."""

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


def test_what_a_kept_export_could_change_is_copied(pool):
    for read in (
        lambda rope: rope.finalize(), lambda rope: bytes(rope), lambda rope: rope.segments()[0],
        lambda rope: rope.split_to(4), lambda rope: rope[:], lambda rope: rope.read(),
    ):
        rope = ropewalk.Rope(pool)
        kept = rope.get_buffer()
        kept[:4] = b"four"
        rope.buffer_updated(4)
        made = read(rope)
        kept[:4] = b"five"
        assert bytes(made) == b"four"
        kept = kept[2:]
        rope.clear()
        with rope.get_buffer() as room:
            room[:4] = b"next"
        rope.buffer_updated(4)
        kept[:2] = b"!!"
        assert rope == b"next" and bytes(kept[:2]) == b"!!"


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


def test_what_was_reserved_stays_reserved_when_nothing_was_written(pool):
    rope = ropewalk.Rope(pool)
    rope.reserve(1 << 20)
    for _ in range(3):
        rope.get_buffer().release()
        assert rope.find(b"x") is None and pool.stats().in_use == 1 << 20
    write(rope, b"some")
    assert rope == b"some" and pool.stats().in_use == 1 << 20
    rope.clear()
    assert pool.stats().in_use == 0


def test_room_to_which_nothing_was_written_is_taken_back(pool):
    rope = ropewalk.Rope(pool)
    rope.get_buffer().release()
    assert rope.find(b"x") is None and pool.stats().in_use == 0
    write(rope, b"some")
    rope.get_buffer().release()
    assert rope.find(b"x") is None and pool.stats().in_use <= 8192


def test_a_kept_export_of_a_full_room_does_not_stop_receiving(pool):
    rope = ropewalk.Rope(pool)
    kept = rope.get_buffer()
    kept[:] = b"1" * len(kept)
    rope.buffer_updated(len(kept))
    write(rope, b"more")
    kept[:] = b"2" * len(kept)
    assert rope == b"1" * len(kept) + b"more"


def test_an_exporter_exports_nothing_once_its_room_was_given_back(pool):
    rope = ropewalk.Rope(pool)
    room = rope.get_buffer()
    exporter = room.obj
    room.release()
    rope.clear()
    assert len(memoryview(exporter)) == 0
    rope.get_buffer().release()
    assert len(memoryview(exporter)) == 0


def test_more_than_was_lent_is_refused(pool):
    rope = ropewalk.Rope(pool)
    with pytest.raises(ValueError, match="1 bytes are beyond the 0 that were lent"):
        rope.buffer_updated(1)
    room = len(rope.get_buffer())
    with pytest.raises(ValueError):
        rope.buffer_updated(room + 1)
    with pytest.raises(ValueError):
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


def test_an_export_keeps_its_room_and_nothing_leaks(pool):
    rope = ropewalk.Rope(pool)
    gone = weakref.ref(rope)
    room = rope.get_buffer()
    del rope
    assert gone() is None and pool.stats().in_use > 0
    room[:3] = b"yes"
    assert bytes(room[:3]) == b"yes"
    del room
    assert pool.stats().in_use == 0
