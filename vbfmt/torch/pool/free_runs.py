"""Allocate runs of consecutive units of memory."""

from __future__ import annotations

from bisect import bisect_left


class FreeRuns:
    """The free runs of a memory that consists of equal units. Allocation is first-fit.

    Attributes:
        total: number of free units.
    """

    def __init__(self, size: int) -> None:
        self._starts: list[int] = []
        self._sizes: list[int] = []
        self.total = 0
        self.free(0, size)

    def allocate(self, size: int, align: int = 1) -> int | None:
        """Allocate a run of `size` units.

        Returns:
            its start, a multiple of `align`; None if there is no such free run.
        """
        if size > self.total:
            return None
        for at, (start, free) in enumerate(zip(self._starts, self._sizes, strict=True)):
            first = -(-start // align) * align
            if first + size <= start + free:
                self._remove(at)
                self.free(start, first - start)
                self.free(first + size, start + free - first - size)
                return first
        return None

    def allocate_pieces(self, size: int) -> list[tuple[int, int]]:
        """Allocate up to `size` units in any runs. Return the start and length of each run."""
        pieces = []
        while size and self._starts:
            start, free = self._starts[0], self._sizes[0]
            self._remove(0)
            taken = min(size, free)
            self.free(start + taken, free - taken)
            pieces.append((start, taken))
            size -= taken
        return pieces

    def free(self, start: int, size: int) -> None:
        """Free a run, and join it with its free neighbours."""
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
