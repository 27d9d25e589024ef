"""Keep the rows of adapters in pages of device memory, which grows without copying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from vbfmt.torch.pool.free_runs import FreeRuns

PAGE = 1024
"""Bytes of a page. Each adapter wastes less than one page."""

_FIRST_CHUNK = 1 << 20
_GROWTH = 32  # a new chunk is at least 1/32 of the memory so far


class Run(NamedTuple):
    """Consecutive pages."""

    chunk: int
    start: int
    size: int


class Pages:
    """Memory in pages for adapters of any size. Its content never moves."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._chunks: list[Tensor] = []  # (bytes,) uint8 each
        self._free: list[FreeRuns] = []

    @property
    def reserved(self) -> int:
        """Number of bytes that are allocated, in use or not."""
        return sum(chunk.numel() for chunk in self._chunks)

    def write(self, data: Tensor, growth: int) -> list[Run]:
        """Copy bytes to the device and return where they are.

        Args:
            data: (n,) uint8 on the CPU.
            growth: number of bytes by which the memory may grow to keep the pages together. If that
                is not enough, free pages are used wherever they are, and the memory grows by the
                number of missing pages.
        """
        runs = self._allocate(count(len(data)), growth)
        at = 0
        for run in runs:
            part = data[at : at + run.size * PAGE]
            self._chunks[run.chunk].narrow(0, run.start * PAGE, len(part)).copy_(part)
            at += len(part)
        return runs

    def read(self, runs: Sequence[Run], size: int) -> list[Tensor]:
        """Return the first `size` bytes of these runs, as views: (n,) uint8 each."""
        views = []
        for run in runs:
            length = min(size, run.size * PAGE)
            views.append(self._chunks[run.chunk].narrow(0, run.start * PAGE, length))
            size -= length
        return views

    def free(self, runs: Sequence[Run]) -> None:
        """Free pages."""
        for run in runs:
            self._free[run.chunk].free(run.start, run.size)

    def _allocate(self, pages: int, growth: int) -> list[Run]:
        for chunk, free in enumerate(self._free):
            start = free.allocate(pages)
            if start is not None:
                return [Run(chunk, start, pages)]
        missing = pages - sum(free.total for free in self._free)
        if missing > 0 and growth >= pages * PAGE:
            size = min(self._next_chunk(), growth // PAGE)
            chunk = self._grow(max(1, size // pages) * pages)
            return [Run(chunk, cast(int, self._free[chunk].allocate(pages)), pages)]
        return self._allocate_pieces(pages)

    def _allocate_pieces(self, pages: int) -> list[Run]:
        """Allocate free pages wherever they are, and grow only by the number of missing pages."""
        runs: list[Run] = []
        for chunk, free in enumerate(self._free):
            pieces = free.allocate_pieces(pages)
            runs += [Run(chunk, *piece) for piece in pieces]
            pages -= sum(size for _, size in pieces)
        if pages:
            chunk = self._grow(pages)
            runs.append(Run(chunk, cast(int, self._free[chunk].allocate(pages)), pages))
        return runs

    def _next_chunk(self) -> int:
        return max(_FIRST_CHUNK, self.reserved // _GROWTH) // PAGE

    def _grow(self, pages: int) -> int:
        # Not an inference tensor, even if the caller is in inference mode.
        with torch.inference_mode(False):
            chunk = torch.empty(pages * PAGE, dtype=torch.uint8, device=self._device)
        self._chunks.append(chunk)
        self._free.append(FreeRuns(pages))
        return len(self._chunks) - 1


def count(size: int) -> int:
    """Return the number of pages that `size` bytes need."""
    return -(-size // PAGE)
