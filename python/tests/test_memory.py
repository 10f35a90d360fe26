"""Without memory every call raises MemoryError, and nothing is lost; none ends the process."""

import pytest

from test_processes import REFUSED, python

PROGRAM = """
import sys
import ropewalk

pool = ropewalk.Pool(capacity=1 << 20)

def many(count=500_000):
    "A rope whose table of segments is long."
    rope = ropewalk.Rope(pool)
    for _ in range(count):
        rope.push(b"x")
    return rope
""" + REFUSED

# What copies the table of segments, and what it is called with.
CALLS = {
    "cursor": "rope.cursor()",
    "slice": "rope[1:]",
    "bytes": "bytes(rope)",
    "==": "rope == rope",
    "segments": "rope.segments()",
    "finalize": "rope.finalize()",
    "split_to": "rope.split_to(250_000)",
    "append": "rope.append(other)",
    "appended": "other.append(rope)",
    "push_front": "[rope.push_front(b'x') for _ in range(10)]",
}


@pytest.mark.parametrize("name", CALLS)
def test_a_long_rope(name):
    python(PROGRAM + f"""
rope, other = many(), many(10)
error = refused(lambda: {CALLS[name]}, 4 << 20)
assert "no heap memory for" in str(error), error
assert len(rope) == 500_000 and len(other) == 10 and bytes(rope) == b"x" * 500_000
""")


def test_a_rope_that_becomes_long():
    python(PROGRAM + """
rope = ropewalk.Rope(pool)
def push():
    while True:
        rope.push(b"x")
error = refused(push, 100 << 20)
count = len(rope)
assert count > 100_000 and len(rope.segments()) == count
rope.push(b"y")
assert rope.find(b"y") == count
""")


@pytest.mark.parametrize("held", [0, 5, 1 << 20])
def test_a_copy(held):
    python(PROGRAM + """
rope, data = ropewalk.Rope(pool), bytes(64 << 20)
rope.extend(data[:int(sys.argv[1])])
error = refused(lambda: rope.extend(data), 8 << 20)
assert isinstance(error, ropewalk.PoolFull) and error.capacity == 1 << 20
assert len(rope) == int(sys.argv[1])
rope.extend(b"more")
assert bytes(rope) == data[:len(rope) - 4] + b"more"
""", str(held))


# What reads what lies in room that is exported still, which takes a copy.
READS = ["bytes(rope)", "rope[:]", "rope.find(b'x')", "rope.push(b'x')", "rope.read()", "rope.split_to(1)", "rope.finalize()",
         "rope.advance(1)", "rope.cursor()", "rope.get_buffer()", "other.append(rope)", "rope.append(other)"]


@pytest.mark.parametrize("read", READS)
def test_room_that_is_exported_still(read):
    python(PROGRAM + f"""
pool = ropewalk.Pool(capacity=2 << 20)
rope, other, rest = ropewalk.Rope(pool), ropewalk.Rope(pool), ropewalk.Rope(pool)
for _ in range(4): # rooms grow as they are filled
    rope.clear()
    room = rope.get_buffer()
    rope.buffer_updated(len(room))
size = len(room)
room[:] = b"x" * size
while len(rest.get_buffer()) > 1:
    rest.buffer_updated(len(rest.get_buffer()))
assert len(rope) == size == 1 << 20
error = refused(lambda: {read}, 0)
assert isinstance(error, ropewalk.PoolFull) or {read!r} == "rope.read()" and str(error) == "", error
assert len(rope) == size and len(other) == 0
assert bytes(rope) == b"x" * size and bytes(room) == b"x" * size
""")


@pytest.mark.parametrize("call", ["rope.clear()", "rope.advance(len(rope))"])
def test_ropes_that_are_emptied_take_no_memory(call):
    python(PROGRAM + f"""
rope = many()
try:
    refused(lambda: {call}, 0)
except AssertionError:
    pass  # there was enough
assert len(rope) == 0
""")
