"""Which parts of a range are free: first fit, neighbours joined.

First fit at the lowest place keeps what is used together at the bottom, so that recycled memory
is memory that was used a moment ago, and the rest can be given back in one piece.

Rules: pure. Invariants: free ranges are sorted, do not touch each other and are not empty; every
place and size is a multiple of the grain, so that at most one grain of a block is wasted.
"""

from __future__ import annotations

from bisect import bisect_left


class FreeList:
    """The free ranges between `start` and `end`."""

    __slots__ = ("_end", "_ends", "_grain", "_start", "_starts")

    def __init__(self, start: int, end: int, grain: int) -> None:
        """Make a list in which everything is free.

        Args:
            start: where the range begins, a multiple of `grain`.
            end: where it ends, likewise.
            grain: what sizes are rounded up to.
        """
        self._start = start
        self._end = end
        self._grain = grain
        self._starts = [start]
        self._ends = [end]

    def rounded(self, size: int) -> int:
        """What a block of that size takes."""
        return -(-size // self._grain) * self._grain

    def take(self, size: int) -> int | None:
        """Take the lowest free place of at least `size` (> 0); None: there is none."""
        size = self.rounded(size)
        starts, ends = self._starts, self._ends
        for index, start in enumerate(starts):
            if ends[index] - start >= size:
                if ends[index] - start == size:
                    del starts[index], ends[index]
                else:
                    starts[index] = start + size
                return start
        return None

    def give(self, start: int, size: int) -> None:
        """Give a block back, as it was taken.

        Raises:
            ValueError: some of it is free already, or it is outside of the range.
        """
        end = start + self.rounded(size)
        starts, ends = self._starts, self._ends
        index = bisect_left(starts, start)
        before = ends[index - 1] if index else self._start
        after = starts[index] if index < len(starts) else self._end
        if start < before or end > after or start >= end:
            raise ValueError(f"{start}-{end} was not taken: free is {list(self.ranges())}")
        joins_before = index > 0 and before == start
        joins_after = index < len(starts) and after == end
        if joins_before and joins_after:
            ends[index - 1] = ends[index]
            del starts[index], ends[index]
        elif joins_before:
            ends[index - 1] = end
        elif joins_after:
            starts[index] = start
        else:
            starts.insert(index, start)
            ends.insert(index, end)

    def ranges(self) -> list[tuple[int, int]]:
        """Every free range as `(start, end)`, lowest first."""
        return list(zip(self._starts, self._ends, strict=True))

    @property
    def used_end(self) -> int:
        """Where the highest used block ends; the start of the range: nothing is used."""
        if self._ends and self._ends[-1] == self._end:
            return self._starts[-1]
        return self._end
