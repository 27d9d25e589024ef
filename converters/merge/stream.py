"""The bytes of a merge, computed on all cores: a file's in the blocks that are written, or a
tensor's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import direct
from vbfmt._format.container import Bytes
from vbfmt._math.parallel import cores
from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.merge import arithmetic
from vbfmt.converters.merge import factors as composed
from vbfmt.converters.merge.arithmetic import PIECE_BYTES, Piece
from vbfmt.converters.merge.layout import File, Item
from vbfmt.converters.merge.plan import Plan
from vbfmt.tensors import Tensor

_MOST_WORKERS = 8
"""More would only hold more memory: a disk takes less than they compute."""
_BLOCK = 1 << 24
"""So long that a disk has not done with one before the threads that compute let go of a core."""
_AHEAD = 2
"""Blocks that are computed beyond the one that is asked for: pieces for all workers."""


def workers() -> ThreadPoolExecutor:
    """Threads that compute pieces."""
    return ThreadPoolExecutor(min(cores(), _MOST_WORKERS))


def tensors(plan: Plan) -> Iterator[tuple[str, Tensor]]:
    """The output's tensors by name, one at a time, for who stores or sends them elsewhere.

    A tensor that the merge does not change is the base's own, mapped; one that it does is in
    memory.

    Raises:
        TargetError: a value leaves the range of the dtype.
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


def file_blocks(file: File, factors: LowRank, pool: ThreadPoolExecutor) -> Iterator[Bytes]:
    """The bytes of a file of weights, as `blocks`."""
    return blocks(_file_pieces(file, factors), pool)


def blocks(pieces: Iterable[Piece], pool: ThreadPoolExecutor) -> Iterator[Bytes]:
    """The bytes of `pieces` in order, in blocks that `direct.write` takes as they are.

    Every piece is computed where its bytes are written from; none is copied. Memory is used in
    turns: a block stays as it is until the next but one is asked for.
    """
    # Those ahead, the one that is asked for, and the one that may still be on its way to the disk:
    # the next block is begun in its memory when the one after it is asked for.
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
    """Bytes of a file that are being computed.

    Attributes:
        memory: it may hold more than is written of it at once.
        filled: so many bytes are computed or being computed; the first of them may be what was too
            much for the block before.
        jobs: by whom.
    """

    memory: NDArray[np.uint8]
    filled: int = 0
    jobs: list[Future[None]] = field(default_factory=list)

    @property
    def whole(self) -> int:
        """The bytes that can be written at once, unless the file ends here."""
        return self.filled - self.filled % direct.ALIGNMENT

    def begin(self, piece: Piece, pool: ThreadPoolExecutor) -> None:
        """Have the next piece computed."""
        end = self.filled + piece.size
        self.jobs.append(pool.submit(piece.compute, self.memory[self.filled : end]))
        self.filled = end

    def finish(self, after: _Block | None) -> Bytes:
        """The bytes to write, once they are there; the rest begins the block after, if any."""
        for job in self.jobs:
            job.result()
        if after is None:
            return self.memory[: self.filled].data
        after.memory[: self.filled - self.whole] = self.memory[self.whole : self.filled]
        return self.memory[: self.whole].data


def _file_pieces(file: File, factors: LowRank) -> Iterator[Piece]:
    yield from _copied("", np.frombuffer(file.header, np.uint8))
    for item in file.items:
        yield from _pieces(item, factors)


def _pieces(item: Item, factors: LowRank) -> Iterator[Piece]:
    if item.module is not None:
        return arithmetic.merged(
            item.name,
            item.source,
            factors.factors(item.module.name),
            item.dtype,
            transposed=item.transposed,
        )
    if item.parts:
        return _of_parts(item, factors)
    if item.copied:
        return _copied(item.name, item.source.data)
    return arithmetic.converted(item.name, item.source, item.dtype)


def _of_parts(item: Item, factors: LowRank) -> Iterator[Piece]:
    """A tensor that holds several modules' weights, matrix by matrix."""
    *stack, rows, columns = item.source.shape
    count = stack[0] if stack else 1
    data = item.source.data.reshape(count, -1)
    for index in range(count):
        matrix = Tensor(item.source.dtype, (rows, columns), data[index])
        parts = [part for part in item.parts if part.block.index in (None, index)]
        if not parts:
            yield from arithmetic.converted(item.name, matrix, item.dtype)
            continue
        pair = composed.factors(parts, factors, (rows, columns))
        yield from arithmetic.merged(item.name, matrix, pair, item.dtype, transposed=False)


def _copied(name: str, data: NDArray[np.uint8]) -> Iterator[Piece]:
    for start in range(0, len(data), PIECE_BYTES):
        yield _copy(name, data[start : start + PIECE_BYTES])


def _copy(name: str, data: NDArray[np.uint8]) -> Piece:
    return Piece(len(data), lambda out: np.copyto(out, data), data, name)
