"""A merge written: computed on all cores, streamed into a temporary folder, put in place whole."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from vbfmt import storage
from vbfmt.container import Bytes
from vbfmt.converters.combine import LowRank
from vbfmt.converters.merge import arithmetic, refusals
from vbfmt.converters.merge.arithmetic import Piece
from vbfmt.converters.merge.layout import File, Item
from vbfmt.converters.merge.plan import PathLike, Plan
from vbfmt.parallel import cores
from vbfmt.tensors import Tensor

_MOST_WORKERS = 8
"""More would only hold more memory: a disk takes less than they compute."""
_AHEAD = 4
_COPIED_AT_ONCE = 1 << 22


def write(
    plan: Plan,
    path: PathLike,
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the model that a plan describes: the whole folder, flushed to the disk, or nothing.

    Memory holds a few blocks at a time, whatever the size of the model.

    Args:
        path: the folder; not inside the base.
        overwrite: replace the output of an earlier merge, in one step. Any other folder, and one
            that holds a file which no merge wrote, is refused.
        progress: called with numbers of bytes as they are written; they sum to `plan.size`.

    Raises:
        OutputExistsError: `path` exists, and `overwrite` is not set.
        TargetError: `path` is no place for it, or a value leaves the range of the dtype.
        StorageError: the operating system refused, or there is not enough room.
    """
    require_place(plan, path, overwrite=overwrite)
    told = progress or (lambda count: None)
    with (
        storage.new_folder(path, overwrite=overwrite, whole=True) as folder,
        ThreadPoolExecutor(min(cores(), _MOST_WORKERS)) as pool,
    ):
        for file in plan.files:
            stream = _counted(_stream(file, plan.factors, pool), told)
            _write_in(folder, file.name, stream, long=True)
        for name in plan.copies:
            source = os.path.join(plan.base.path, name)
            _write_in(folder, name, _counted(_content(source), told))
        for name, text in plan.texts.items():
            _write_in(folder, name, _counted([text], told))


def require_place(plan: Plan, path: PathLike, *, overwrite: bool) -> None:
    """Check all that can be checked of an output before anything is written.

    Raises:
        as `write`.
    """
    refusals.require_place(os.fspath(path), plan.base.path, overwrite=overwrite)
    refusals.require_room(os.fspath(path), plan.size)


def tensors(plan: Plan) -> Iterator[tuple[str, Tensor]]:
    """The output's tensors by name, one at a time, for who stores or sends them elsewhere.

    A tensor that the merge does not change is the base's own, mapped; one that it does is in
    memory.

    Raises:
        TargetError: a value leaves the range of the dtype.
    """
    with ThreadPoolExecutor(min(cores(), _MOST_WORKERS)) as pool:
        for file in plan.files:
            for item in file.items:
                if _is_copied(item):
                    yield item.name, item.source
                    continue
                data = np.empty(item.size, np.uint8)
                end = 0
                for piece in _in_order(_pieces(item, plan.factors), pool):
                    data[end : end + len(piece)] = piece
                    end += len(piece)
                yield item.name, Tensor(item.dtype, item.source.shape, data)


def _stream(file: File, factors: LowRank, pool: ThreadPoolExecutor) -> Iterator[Bytes]:
    """The bytes of a file of weights, the next ones computed while one is written."""
    yield file.header
    pieces = (piece for item in file.items for piece in _pieces(item, factors))
    for array in _in_order(pieces, pool):
        yield array.data


def _pieces(item: Item, factors: LowRank) -> Iterator[Piece]:
    if item.module is not None:
        return arithmetic.merged(
            item.name,
            item.source,
            factors.factors(item.module.name),
            item.dtype,
            transposed=item.transposed,
        )
    if _is_copied(item):
        return _slices(item.source.data)
    return arithmetic.converted(item.name, item.source, item.dtype)


def _is_copied(item: Item) -> bool:
    return item.module is None and item.dtype == item.source.dtype


def _slices(data: NDArray[np.uint8]) -> Iterator[Piece]:
    for start in range(0, len(data), _COPIED_AT_ONCE):
        yield data[start : start + _COPIED_AT_ONCE].view


def _in_order(pieces: Iterable[Piece], pool: ThreadPoolExecutor) -> Iterator[NDArray[np.uint8]]:
    """The results of `pieces` in their order, a few of them computed ahead."""
    ahead: deque[Future[NDArray[np.uint8]]] = deque()
    try:
        for piece in pieces:
            ahead.append(pool.submit(piece))
            if len(ahead) > min(cores(), _MOST_WORKERS) + _AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()


def _content(path: str) -> Iterator[Bytes]:
    try:
        with open(path, "rb") as stream:
            while block := stream.read(_COPIED_AT_ONCE):
                yield block
    except OSError as error:
        raise storage.refusal("cannot read", path, error) from None


def _counted(contents: Iterable[Bytes], told: Callable[[int], None]) -> Iterator[Bytes]:
    for content in contents:
        yield content
        told(len(content))


def _write_in(folder: str, name: str, contents: Iterable[Bytes], *, long: bool = False) -> None:
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    storage.write(path, contents, overwrite=False, past_cache=long)
