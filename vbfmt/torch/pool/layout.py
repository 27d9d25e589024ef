"""Store the rows of an adapter as bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbfmt.adapter import Adapter
from vbfmt.errors import ContentError
from vbfmt.module import Module


@dataclass(frozen=True, eq=False)
class Layout:
    """The layout of an adapter's rows as bytes. Adapters with equal layouts share one object.

    Attributes:
        modules: the adapted modules, in the order of their rows.
        b: vector length.
        k: number of vectors that a row selects.
        index_size: number of bytes of an index.
        N: number of rows.
    """

    modules: tuple[Module, ...]
    b: int
    k: int
    index_size: int
    N: int

    @classmethod
    def of(cls, adapter: Adapter) -> Layout:
        """Return the layout of an adapter."""
        return cls(adapter.modules, adapter.b, adapter.k, adapter.indices.itemsize, adapter.N)

    @property
    def key(self) -> tuple[object, ...]:
        """A key that is equal for equal layouts."""
        return self.modules, self.b, self.k, self.index_size

    @property
    def nbytes(self) -> int:
        """Number of bytes of an adapter's rows."""
        return self.N * (4 * (self.k - 1) + self.index_size * self.k)

    def unpack(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices and weights in the bytes of n adapters.

        Args:
            data: (n, nbytes) uint8.

        Returns:
            indices (n, N, k) int32, and all k weights (n, N, k) float32.
        """
        n, middle = len(data), 4 * self.N * (self.k - 1)
        stored = data[:, :middle].reshape(-1).view(torch.float32).view(n, self.N, self.k - 1)
        # w₀ = 1 − Σ wᵢ in float64, as the format requires; MPS has no float64.
        wide = torch.float32 if data.device.type == "mps" else torch.float64
        first = 1.0 - stored.sum(2, keepdim=True, dtype=wide)
        indices = data[:, middle:].reshape(-1)
        if self.index_size == 2:
            indices = indices.view(torch.int16)
        wide_indices = indices.to(torch.int32).view(n, self.N, self.k)
        if self.index_size == 2:
            wide_indices = wide_indices & 0xFFFF  # int16 is signed
        return wide_indices, torch.cat([first.float(), stored], 2)


def pack(adapter: Adapter) -> Tensor:
    """Return an adapter's rows as bytes, (nbytes,) uint8: the stored weights, then the indices.

    Raises:
        ContentError: an index is outside the bank, or a weight is not finite. Only an adapter that
            was loaded with ``verify=False`` can have these.
    """
    if adapter.N and int(adapter.indices.max()) >= adapter.h:
        raise ContentError(
            "an index is outside the bank", part="indices", expected=f"below {adapter.h}"
        )
    if not np.isfinite(adapter.weights).all():
        raise ContentError("a weight is not finite", part="weights")
    size = adapter.indices.itemsize
    pieces = [_bytes(adapter.weights, "<f4"), _bytes(adapter.indices, f"<u{size}")]
    return torch.from_numpy(np.concatenate(pieces))


def _bytes(array: NDArray[np.generic], dtype: str) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array, dtype=dtype).view(np.uint8).reshape(-1)
