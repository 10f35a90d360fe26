"""What a pool holds, as a named tuple: the extension makes it."""

from typing import NamedTuple


class PoolStats(NamedTuple):
    """What a pool holds and has done. Sizes are in bytes."""

    capacity: int
    """Most bytes that ropes may hold; smaller than asked for where the kernel refused the reservation."""
    in_use: int
    """Held by ropes, views and cursors, in whole pages."""
    warm: int
    """Resident and free; handed out first."""
    peak: int
    """The most that was ever in use."""
    page_size: int
    """Bytes of a page; ropes hold whole pages."""
    extents: int
    """Runs of pages handed out so far."""
    fallbacks: int
    """How often memory came from the heap because the pool had none to give."""
    bytes_copied: int
    """Bytes that views copied."""
    bytes_mapped: int
    """Bytes that views mapped."""
    maps: int
    """Maps that views made."""
    waiting: int
    """How many wait for room now."""
    backing: str
    """What the pages are made of: ``"memfd"`` or ``"anonymous"``."""
    reduced: bool
    """Whether the kernel refused a memfd or a reservation of the size asked for."""
