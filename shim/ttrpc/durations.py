"""How long calls of one kind took, as counts by powers of two. Cheap enough for every call."""

from __future__ import annotations

BOUNDS_MS = tuple(1 << power for power in range(10))
"""Upper bounds of the counts, in milliseconds; one more count is for what took longer.

They are those of Kata's histograms."""

_LAST = len(BOUNDS_MS)
_NS_PER_MS = 1_000_000


class Durations:
    """The calls of one kind.

    Attributes:
        counts: calls by the bound they stayed within, the last those beyond all.
        total_ns: their sum in ns.
    """

    __slots__ = ("counts", "total_ns")

    def __init__(self) -> None:
        self.counts: list[int] = []  # most methods are never called
        self.total_ns = 0

    def add(self, nanoseconds: int) -> None:
        """Count a call."""
        counts = self.counts
        if not counts:
            counts = self.counts = [0] * (_LAST + 1)
        self.total_ns += nanoseconds
        if nanoseconds <= _NS_PER_MS:
            counts[0] += 1
        else:
            # The smallest power of two that is not below it, in milliseconds rounded up.
            place = ((nanoseconds - 1) // _NS_PER_MS).bit_length()
            counts[min(place, _LAST)] += 1
