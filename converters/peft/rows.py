"""Convert PEFT's tensors to rows, and rows to PEFT's top-k tensors.

In PEFT, A is (rank, tile, …) and B is (tile, rank, …), where a tile is a position along the
features. A row is the selection of one sub-vector: indices and weights.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import peft_layout
from vbfmt._math.admixture import Rows, all_weights, canonical_rows, repeats, rows_from_selection
from vbfmt._math.selection import Logits, select_top_k
from vbfmt.adapter import Adapter
from vbfmt.converters._files.safetensors import Spec
from vbfmt.converters.peft.keys import Keys
from vbfmt.errors import ContentError, warn
from vbfmt.tensors import Tensor

Key = TypeVar("Key", bound=Hashable)
Shape: TypeAlias = tuple[int, ...]

_ROUNDING = {"F64": 2.0**-52, "F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}
"""dtype → tolerance for the rounding of weights to it: twice its largest effect on their sum."""
_SUMMED = 2.0**-22
"""Tolerance for the rounding of each of the k terms of PEFT's softmax in float32."""
_DTYPES = {"|u1": "U8", "<i2": "I16", "<i4": "I32"}
"""NumPy's code of a dtype of indices → its name in safetensors."""


def rows_by_module(keys: Keys, tensors: Mapping[str, Tensor], k: int, h: int) -> dict[str, Rows]:
    """Return the canonical rows of every module, first A's, then B's, in the order of the packed
    format.

    Raises:
        ContentError: a logit is NaN, an index is outside the bank, or weights are out of range.
    """
    if not keys.in_logits_form:
        return _rows_of_weights(keys, tensors, k, h)
    blocks = {key: tensors[key].numpy().reshape(-1, h) for key in keys.in_order("logits")}
    return split(rows_of_blocks(blocks, k, h), _shapes(keys, tensors, "logits"))


def rows_of_blocks(blocks: Mapping[str, Logits], k: int, h: int) -> Rows:
    """Return the canonical rows of all blocks of logits (n, h), concatenated. Warn about ties.

    Raises:
        ContentError: a logit is NaN, or k is out of range.
    """
    selection = select_top_k(blocks, k)
    if selection.ties:
        warn(
            f"{selection.ties} of {len(selection.indices)} sub-vectors have equal logits at the "
            f"top-{k} boundary; the lowest index was selected, but the trained model may have "
            f"selected another"
        )
    return rows_from_selection(selection, h)


def _rows_of_weights(keys: Keys, tensors: Mapping[str, Tensor], k: int, h: int) -> dict[str, Rows]:
    """Return the rows from PEFT's top-k form, which lacks the weight of the last index."""
    parts = [
        _given_row(tensors, indices, weights, k, h)
        for indices, weights in zip(keys.in_order("indices"), keys.in_order("weights"), strict=True)
    ]
    indices = np.concatenate([part[0] for part in parts])
    weights = np.concatenate([part[1] for part in parts])
    rescued = np.flatnonzero(weights[:, -1] < 0)
    if rescued.size:
        weights[rescued, -1] = 0
        weights[rescued] /= weights[rescued].sum(axis=1, keepdims=True)
        warn(
            f"rounding made the weights of {rescued.size} of {len(weights)} rows sum to more than "
            "1 (PEFT computes NaN from them); they were scaled to sum to 1"
        )
    return split(canonical_rows(indices, weights, h), _shapes(keys, tensors, "indices"))


def _given_row(
    tensors: Mapping[str, Tensor], indices_key: str, weights_key: str, k: int, h: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return a factor's indices and weights, (n, k) each.

    The last weight is 1 minus the sum of the others.
    """
    indices = tensors[indices_key].numpy().reshape(-1, k).astype(np.int64)
    weights = tensors[weights_key]
    with np.errstate(over="ignore", invalid="ignore"):  # values out of range are refused below
        given = weights.numpy().reshape(len(indices), k - 1).astype(np.float64)
        rest = 1.0 - np.cumsum(given, axis=1)[:, -1:] if k > 1 else np.ones((len(given), 1))
    bad = (indices < 0) | (indices >= h)
    if bad.any():
        raise ContentError(
            "index past the end of the bank",
            part=indices_key,
            found=indices[bad][0],
            expected=f"0 to {h - 1}",
        )
    again = np.flatnonzero(repeats(indices))
    if again.size:
        row = int(again[0])
        raise ContentError(
            "duplicate index in one row",
            part=f"{indices_key}, row {row}",
            found=", ".join(map(str, indices[row].tolist())),
            expected=f"{k} different vectors",
        )
    slack = _ROUNDING[weights.dtype] + k * _SUMMED
    valid = ((given >= 0) & (given <= 1 + slack)).all(axis=1) & (rest[:, 0] >= -slack)
    if not valid.all():
        row = int(np.flatnonzero(~valid)[0])
        raise ContentError(
            "weights are out of range",
            part=f"{weights_key}, row {row}",
            found=given[row].tolist(),
            expected="each 0 to 1, together at most 1",
        )
    return indices, np.concatenate([given, rest], axis=1)


def _shapes(keys: Keys, tensors: Mapping[str, Tensor], what: str) -> dict[str, list[Shape]]:
    """Return the shapes of both factors by module, for `split`. A is in the right order already."""
    result: dict[str, list[Shape]] = {}
    for name, factors in keys.modules.items():
        (rank, tiles), b = (tensors[factors[factor][what]].shape[:2] for factor in ("A", "B"))
        result[name] = [(1, rank * tiles), b]
    return result


def split(rows: Rows, shapes: Mapping[Key, Iterable[Shape]]) -> dict[Key, Rows]:
    """Divide rows among modules. Reorder those of each factor from (first, second) to (second,
    first).

    Args:
        rows: the rows of all modules, first A's, then B's of each.
        shapes: module → (first, second) of A and of B.
    """
    result = {}
    start = 0
    for module, factors in shapes.items():
        pair = []
        for first, second in factors:
            here = slice(start, start + first * second)
            pair.append([swap(part[here], first, second) for part in (rows.indices, rows.weights)])
            start = here.stop
        indices, weights = map(np.concatenate, zip(*pair, strict=True))
        result[module] = Rows(indices, weights)
    return result


def swap(rows: NDArray[Any], first: int, second: int) -> NDArray[Any]:
    """Reorder rows from the order (first, second) to (second, first). They are (first · second,
    k)."""
    columns = rows.shape[1]
    by_second = rows.reshape(first, second, columns).swapaxes(0, 1)
    swapped: NDArray[Any] = by_second.reshape(first * second, columns)
    return swapped


@dataclass(frozen=True)
class TopK:
    """PEFT's top-k tensors of all modules.

    Attributes:
        adapter: the adapter.
        indices: (N, k), in PEFT's order.
        weights: (N, k − 1) float32, in PEFT's order.
    """

    adapter: Adapter
    indices: NDArray[Any]
    weights: NDArray[np.float32]

    @classmethod
    def of(cls, adapter: Adapter) -> TopK:
        """Return the tensors of an adapter, from which PEFT restores every weight exactly.

        PEFT does not store the last weight of a row, which is the smallest, and restores it as 1
        minus the sum of the others. If that is not exact, the row is rotated by one column, so that
        the largest weight is not stored, as in a packed file.
        """
        code = "u1" if adapter.h < 1 << 8 else "<i2" if adapter.h < 1 << 15 else "<i4"
        indices = adapter.indices.astype(code)
        if adapter.k == 1:
            return cls(adapter, indices, adapter.weights)
        full = all_weights(adapter.weights)
        wide = full.astype(np.float64)
        rest = 1.0 - np.cumsum(wide[:, :-1], axis=1)[:, -1:]
        again = canonical_rows(
            adapter.indices, np.concatenate([wide[:, :-1], np.maximum(rest, 0)], axis=1), adapter.h
        )
        same = (again.indices == adapter.indices).all(axis=1)
        same &= (again.weights == adapter.weights).all(axis=1) & (rest[:, 0] >= 0)
        exact = same[:, None]
        return cls(
            adapter,
            np.where(exact, indices, np.roll(indices, -1, axis=1)),
            np.where(exact, full[:, :-1], full[:, 1:]),
        )

    def specs(self) -> Iterator[Spec]:
        """Yield name, dtype and shape of every tensor."""
        for factor, key, rank, tiles, _ in self._factors():
            lead = (rank, tiles) if factor == "A" else (tiles, rank)
            for what, dtype, rows in self._kinds():
                yield f"{key}_topk_{what}", dtype, (*lead, rows.shape[1])

    def contents(self) -> Iterator[memoryview]:
        """Yield the bytes of every tensor, in the order of `specs`."""
        for factor, _, rank, tiles, here in self._factors():
            for _, _, rows in self._kinds():
                part = rows[here]
                yield as_bytes(part if factor == "A" else swap(part, rank, tiles))

    def _kinds(self) -> tuple[tuple[str, str, NDArray[Any]], ...]:
        dtype = _DTYPES[self.indices.dtype.str]
        return ("indices", dtype, self.indices), ("weights", "F32", self.weights)

    def _factors(self) -> Iterator[tuple[str, str, int, int, slice]]:
        """Yield each factor's letter, the key of its logits, its rank, its tiles and its rows."""
        start = 0
        for module in self.adapter:
            for factor, features in (("A", module.in_features), ("B", module.out_features)):
                tiles = features // self.adapter.b
                here = slice(start, start + module.rank * tiles)
                start = here.stop
                key = peft_layout.key_of_logits(module.name, factor)
                yield factor, key, module.rank, tiles, here


def as_bytes(array: NDArray[Any]) -> memoryview:
    """Return the bytes of an array in row-major order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
