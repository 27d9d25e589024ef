"""Compute the output of a merge on all cores, as blocks of files to write or as tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, cycle

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import direct
from vbfmt._format.container import Bytes
from vbfmt._math.parallel import cores
from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.merge import arithmetic, rounding
from vbfmt.converters.merge.arithmetic import PIECE_BYTES, Piece
from vbfmt.converters.merge.layout import File, Item, Part
from vbfmt.converters.merge.plan import Plan
from vbfmt.tensors import Tensor

_MOST_WORKERS = 8
"""More threads would only use more memory, because these already compute faster than a disk
writes."""
_BLOCK = 1 << 24
"""Bytes of a block: enough to keep the disk busy until the writing thread gets a core again."""
_AHEAD = 2
"""Number of blocks that are computed in advance, so that every worker has a piece to compute."""


def workers() -> ThreadPoolExecutor:
    """Return a pool of threads that compute pieces."""
    return ThreadPoolExecutor(min(cores(), _MOST_WORKERS))


def tensors(plan: Plan) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) for each tensor of the output.

    An unchanged tensor is the base's own memory-mapped tensor. A changed tensor is in memory.

    Raises:
        TargetError: a value is too large for the dtype, or all values of a matrix are too small.
        StorageError: the base has changed meanwhile. This is raised after the last tensor.
    """
    with workers() as pool:
        for file in plan.files:
            for item in file.items:
                if item.copied:
                    yield item.name, item.source
                    continue
                data = np.empty(item.size, np.uint8)
                jobs, end = [], 0
                for piece in _pieces(item, plan.factors):
                    jobs.append(pool.submit(piece.compute, data[end : end + piece.size]))
                    end += piece.size
                for job in jobs:
                    job.result()
                yield item.name, Tensor(item.dtype, item.source.shape, data)
    plan.base.require_unchanged()


def file_blocks(file: File, factors: LowRank, pool: ThreadPoolExecutor) -> Iterator[Bytes]:
    """Yield the bytes of a weight file in blocks, as `blocks` does."""
    header = _copied("", np.frombuffer(file.header, np.uint8))
    pieces = (_pieces(item, factors) for item in file.items)
    return blocks(chain(header, chain.from_iterable(pieces)), pool)


def blocks(pieces: Iterable[Piece], pool: ThreadPoolExecutor) -> Iterator[Bytes]:
    """Yield the bytes of `pieces` in order, in blocks that `direct.write` writes without a copy.

    Each piece is computed directly into its block. The memory of blocks is reused: a block is valid
    until two more blocks have been requested.
    """
    # Memory for the blocks that are computed in advance, for the block that the caller requests,
    # and for the previous block, which may still be being written to the disk.
    memory = cycle([direct.aligned(_BLOCK + PIECE_BYTES) for _ in range(_AHEAD + 2)])
    waiting: deque[_Block] = deque()
    block = _Block(next(memory))
    for piece in pieces:
        block.begin(piece, pool)
        if block.filled < _BLOCK:
            continue
        waiting.append(block)
        block = _Block(next(memory), block.filled - block.whole)
        if len(waiting) > _AHEAD:
            yield waiting.popleft().finish(waiting[0])
    waiting.append(block)
    while len(waiting) > 1:
        yield waiting.popleft().finish(waiting[0])
    if block.filled:
        yield block.finish(None)


@dataclass
class _Block:
    """A block of a file that is being computed.

    Attributes:
        memory: the block's memory. It is longer than `_BLOCK`, so that the last piece fits.
        filled: number of bytes that have a piece, plus those that are left over from the previous
            block.
        jobs: the running computations of its pieces.
    """

    memory: NDArray[np.uint8]
    filled: int = 0
    jobs: list[Future[None]] = field(default_factory=list)

    @property
    def whole(self) -> int:
        """Number of bytes that can be written with aligned writes."""
        return self.filled - self.filled % direct.ALIGNMENT

    def begin(self, piece: Piece, pool: ThreadPoolExecutor) -> None:
        """Submit the next piece to the pool."""
        end = self.filled + piece.size
        self.jobs.append(pool.submit(piece.compute, self.memory[self.filled : end]))
        self.filled = end

    def finish(self, after: _Block | None) -> Bytes:
        """Wait for the pieces, and return the bytes to write.

        Bytes after the last aligned position are moved to the beginning of the next block, `after`.
        If `after` is None, the file ends here, and all bytes are returned.
        """
        for job in self.jobs:
            job.result()
        if after is None:
            return self.memory[: self.filled].data
        after.memory[: self.filled - self.whole] = self.memory[self.whole : self.filled]
        return self.memory[: self.whole].data


def _pieces(item: Item, factors: LowRank) -> Iterator[Piece]:
    if item.parts:
        return _merged(item, factors)
    if item.copied:
        return _copied(item.name, item.source.data)
    return arithmetic.converted(item.name, item.source, item.dtype)


def _merged(item: Item, factors: LowRank) -> Iterator[Piece]:
    """Yield the pieces of a tensor that holds weights of adapted modules.

    A three-dimensional tensor is a stack of matrices, which are computed one after another.
    """
    *stack, rows, columns = item.source.shape
    count = stack[0] if stack else 1
    data = item.source.data.reshape(count, -1)
    for index in range(count):
        matrix = Tensor(item.source.dtype, (rows, columns), data[index])
        parts = [part for part in item.parts if part.block.index in (None, index)]
        if not parts:
            rounding.require_kept(matrix, item.name, item.dtype)
            yield from arithmetic.converted(item.name, matrix, item.dtype)
            continue
        pair = factors_of(parts, factors, (rows, columns))
        yield from arithmetic.merged(item.name, matrix, pair, item.dtype)


def factors_of(
    parts: Sequence[Part], adapter: LowRank, shape: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return A and B whose product has each module's ΔW at its position, and zeros elsewhere.

    Args:
        parts: positions of the modules' rows in the tensor.
        adapter: the adapter that has these modules.
        shape: (rows, columns) of the tensor.

    Returns:
        A (rank, columns) and B (rows, rank), float32. The rank is the sum of the modules' ranks.
    """
    rank = sum(part.module.rank for part in parts)
    a, b = np.zeros((rank, shape[1]), np.float32), np.zeros((shape[0], rank), np.float32)
    start = 0
    for part in parts:
        here = slice(start, start + part.module.rank)
        own_a, own_b = adapter.factors(part.module.name)
        rows, columns, own = (
            slice(None) if positions is None else positions
            for positions in (part.block.rows, part.block.columns, part.block.own_rows)
        )
        if part.block.transposed:
            a[here, rows] = own_b[own].T
            b[columns, here] = own_a.T
        else:
            a[here, columns] = own_a
            b[rows, here] = own_b[own]
        start = here.stop
    return a, b


def _copied(name: str, data: NDArray[np.uint8]) -> Iterator[Piece]:
    for start in range(0, len(data), PIECE_BYTES):
        part = data[start : start + PIECE_BYTES]
        yield Piece(len(part), partial(np.copyto, src=part), part, name)
