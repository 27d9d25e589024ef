"""Allocation of stretches of a memory."""

from __future__ import annotations

from bisect import bisect_left


class FreeRuns:
    """Free stretches of a memory that consists of equal units, first fit.

    Attributes:
        total: number of free units.
    """

    def __init__(self, size: int) -> None:
        self._starts: list[int] = []
        self._sizes: list[int] = []
        self.total = 0
        self.give(0, size)

    def take(self, size: int, align: int = 1) -> int | None:
        """Take one stretch and return its start, a multiple of `align`; None if there is none."""
        if size > self.total:
            return None
        for at, (start, free) in enumerate(zip(self._starts, self._sizes, strict=True)):
            first = -(-start // align) * align
            if first + size <= start + free:
                self._remove(at)
                self.give(start, first - start)
                self.give(first + size, start + free - first - size)
                return first
        return None

    def take_pieces(self, size: int) -> list[tuple[int, int]]:
        """Take up to `size` units in any stretches: (start, units) of each."""
        pieces = []
        while size and self._starts:
            start, free = self._starts[0], self._sizes[0]
            self._remove(0)
            taken = min(size, free)
            self.give(start + taken, free - taken)
            pieces.append((start, taken))
            size -= taken
        return pieces

    def give(self, start: int, size: int) -> None:
        """Free a stretch, and join it with its free neighbours."""
        if not size:
            return
        at = bisect_left(self._starts, start)
        if at < len(self._starts) and start + size == self._starts[at]:
            size += self._remove(at)
        if at and self._starts[at - 1] + self._sizes[at - 1] == start:
            start = self._starts[at - 1]
            size += self._remove(at - 1)
            at -= 1
        self._starts.insert(at, start)
        self._sizes.insert(at, size)
        self.total += size

    def _remove(self, at: int) -> int:
        size = self._sizes.pop(at)
        self._starts.pop(at)
        self.total -= size
        return size
