"""Select the k largest logits of each sub-vector: TopK of Eq. 3.3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._math.parallel import for_each
from vbfmt.errors import ContentError

Logits = NDArray[Any]
"""A float array (n, h) of any float dtype, ml_dtypes' bfloat16 included."""

_BLOCK_BYTES = 1 << 20  # half of a common L2 cache, because the block is read k + 2 times
_PASSES_AT_MOST = 8  # for more maxima, partitioning the row once is cheaper
_ROWS_AT_ONCE = 1024
_WORTH_THREADS = 1 << 22  # logits; fewer take less time than starting threads


@dataclass(frozen=True)
class Selection:
    """The k largest logits of every row, in descending order; equal ones by ascending index.

    Attributes:
        indices: (N, k) intp, indices into the bank.
        logits: (N, k) float64, the unchanged values of the selected logits.
        ties: number of rows in which an unselected logit equals the k-th largest. It is undefined
            which of them the trained model selected; here, the lowest index is selected.
    """

    indices: NDArray[np.intp]
    logits: NDArray[np.float64]
    ties: int


def select_top_k(blocks: Mapping[str, Logits], k: int) -> Selection:
    """Select the k largest logits of each row of all `blocks`, in the order of the mapping.

    The rows are processed on all cores, in pieces that fit into the cache. There is no copy of all
    logits.

    Args:
        blocks: name → logits (n, h) of any float dtype. The names are used only in errors.
        k: number of logits to select, 1 ≤ k ≤ h.

    Raises:
        ContentError: a logit is NaN or +∞, a row has no finite logit, or k is out of range.
    """
    for name, block in blocks.items():
        if not 1 <= k <= block.shape[1]:
            raise ContentError(
                "k is out of range", part=name, found=k, expected=f"1 to {block.shape[1]} (h)"
            )
    counts = [len(block) for block in blocks.values()]
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    indices = np.empty((int(starts[-1]), k), dtype=np.intp)
    logits = np.empty((int(starts[-1]), k), dtype=np.float64)

    def work(piece: tuple[int, str, Logits, int], scratch: dict[str, NDArray[Any]]) -> None:
        start, name, block, first = piece
        rows = block[first : first + _ROWS_AT_ONCE]
        here = slice(start + first, start + first + len(rows))
        try:
            ties.append(_select(rows, first, indices[here], logits[here], scratch))
        except ContentError as error:
            error.part = f"{name}, {error.part}"
            raise

    ties: list[int] = []
    pieces = [
        (int(start), name, block, first)
        for start, (name, block) in zip(starts, blocks.items(), strict=False)
        for first in range(0, len(block), _ROWS_AT_ONCE)
    ]
    total = sum(block.size for block in blocks.values())
    for_each(pieces, work, dict, alone=total < _WORTH_THREADS)
    return Selection(indices, logits, sum(ties))


def _select(
    block: Logits,
    first: int,
    indices: NDArray[np.intp],
    logits: NDArray[np.float64],
    scratch: dict[str, NDArray[Any]],
) -> int:
    """Fill `indices` and `logits` (n, k) from `block` (n, h), and return the number of ties.

    `first` is the number of the block's first row, for errors.
    """
    h, k = block.shape[1], indices.shape[1]
    dtype = np.dtype(np.float64 if block.dtype.itemsize > 4 else np.float32)
    rows = max(1, _BLOCK_BYTES // (h * dtype.itemsize))
    space = scratch.get(dtype.char)
    if space is None or space.shape[1] != h:
        space = scratch[dtype.char] = np.empty((rows, h), dtype=dtype)
    ties = 0
    for start in range(0, len(block), rows):
        here = slice(start, min(start + rows, len(block)))
        values = space[: here.stop - here.start]
        np.copyto(values, block[here], casting="unsafe")
        found = (_by_passes if k <= _PASSES_AT_MOST else _by_partition)(values, k)
        _refuse_non_finite(found[1][:, 0], first + start)
        indices[here], logits[here] = found[0], found[1]
        ties += int(np.count_nonzero(found[2] & np.isfinite(found[1][:, -1])))
        _fill_rows_with_too_few(block[here], indices[here], logits[here])
    return ties


def _by_passes(
    values: NDArray[Any], k: int
) -> tuple[NDArray[np.intp], NDArray[Any], NDArray[np.bool_]]:
    """Return indices and values of the k largest, and which rows have ties, in k passes.

    Each pass takes the maximum and overwrites it in `values`. Among equal values argmax returns the
    lowest index, and it returns the index of a NaN if there is one.
    """
    rows = np.arange(len(values))
    indices = np.empty((len(values), k), dtype=np.intp)
    top = np.empty((len(values), k), dtype=values.dtype)
    for j in range(k):
        at = values.argmax(axis=1)
        indices[:, j] = at
        top[:, j] = values[rows, at]
        values[rows, at] = -np.inf
    tied: NDArray[np.bool_] = values.max(axis=1) == top[:, -1]
    return indices, top, tied


def _by_partition(
    values: NDArray[Any], k: int
) -> tuple[NDArray[np.intp], NDArray[Any], NDArray[np.bool_]]:
    """Return the same as `_by_passes`, by finding the k-th largest value first. Faster for large
    k."""
    n, h = values.shape
    kth = np.partition(values, h - k, axis=1)[:, h - k, None]
    above, level = values > kth, values == kth
    room = k - above.sum(axis=1, keepdims=True)
    # Select NaNs too, so that the caller sees and refuses them.
    chosen = above | np.isnan(values) | (level & (np.cumsum(level, axis=1) <= room))
    tied: NDArray[np.bool_] = level.sum(axis=1) > room[:, 0]
    nan = np.isnan(values).any(axis=1)
    chosen[nan] = False
    chosen[nan, :k] = True
    indices = np.nonzero(chosen)[1].reshape(n, k)
    top = np.take_along_axis(values, indices, axis=1)
    order = np.argsort(-top, axis=1, kind="stable")
    top = np.take_along_axis(top, order, axis=1)
    top[nan] = np.nan
    return np.take_along_axis(indices, order, axis=1), top, tied


def _refuse_non_finite(largest: NDArray[Any], start: int) -> None:
    """Refuse rows whose largest logit is not finite.

    NaN and +∞ count as the largest. If the largest is −∞, the row has no finite logit.
    """
    bad = np.flatnonzero(~np.isfinite(largest))
    if bad.size:
        raise ContentError(
            "logits are not usable",
            part=f"row {start + int(bad[0])}",
            found=_NOT_USABLE[str(largest[bad[0]])],
            expected="finite logits",
            advice="the training run that wrote this checkpoint diverged or the file is damaged",
        )


_NOT_USABLE = {"nan": "NaN", "inf": "infinity", "-inf": "minus infinity alone"}
"""The largest logit of a refused row → description of the row, for the message."""


def _fill_rows_with_too_few(
    block: Logits, indices: NDArray[np.intp], logits: NDArray[np.float64]
) -> None:
    """Complete rows that have fewer than k finite logits with the lowest other indices.

    PEFT writes such rows, with −∞ for unselected vectors, when a model that was loaded from the
    top-k form is saved as logits.
    """
    few = np.flatnonzero(np.isneginf(logits[:, -1]))
    if few.size:
        rows = block[few].astype(np.float64)
        k = indices.shape[1]
        indices[few] = np.argsort(-rows, axis=1, kind="stable")[:, :k]
        logits[few] = np.take_along_axis(rows, indices[few], axis=1)
