"""Convert rows to PEFT's top-k tensors.

PEFT's tensors for A have the shape (rank, tiles, …), and those for B (tiles, rank, …). A tile is a
group of b consecutive features, which one sub-vector fills.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import peft_layout
from vbfmt._math.admixture import all_weights, canonical_rows
from vbfmt.adapter import Adapter
from vbfmt.converters._files.safetensors import Spec

_DTYPES = {"|u1": "U8", "<i2": "I16", "<i4": "I32", "<f4": "F32"}
"""NumPy's code of a dtype → its name in safetensors."""


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
        for key, array in self.tensors():
            yield key, _DTYPES[array.dtype.str], array.shape

    def tensors(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield key and values of every tensor. The values are views, not in memory order."""
        start = 0
        for module in self.adapter:
            for factor, features in (("A", module.in_features), ("B", module.out_features)):
                tiles = features // self.adapter.b
                here = slice(start, start + module.rank * tiles)
                start = here.stop
                for what, rows in (("indices", self.indices), ("weights", self.weights)):
                    by_rank = rows[here].reshape(module.rank, tiles, rows.shape[1])
                    key = f"{peft_layout.key_of_logits(module.name, factor)}_topk_{what}"
                    yield key, by_rank if factor == "A" else by_rank.swapaxes(0, 1)


def as_bytes(array: NDArray[Any]) -> memoryview:
    """Return the bytes of an array in row-major order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
