"""Compute A·x on a CPU for one position per sample, without composing A.

A component of A·x is a weighted sum of dot products: of a vector of the bank and a tile of x. For a
large batch, A is larger than a CPU's caches, and reading the bank is faster.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from vbfmt.torch.pool.frame import Bags


class Tiles(NamedTuple):
    """A's rows of one module, ordered by sample, then by tile of the input, then by component.

    Attributes:
        pattern: which dot products to compute: sparse CSR of the shape (R · a_tiles, vectors of the
            bank), with rank · k entries per row. The entries of a row may be in any order. Its
            values are not used.
        vectors: those of the bank, (g, vectors).
        weights: the weight of each dot product, (R, a_tiles · rank · k) float32.
        components: as in `Bags`.
    """

    pattern: Tensor
    vectors: Tensor
    weights: Tensor
    components: Tensor

    @staticmethod
    def of(bank: Tensor, indices: Tensor, weights: Tensor, bags: Bags) -> Tiles | None:
        """Return the rows with these indices and weights, or None if PyTorch cannot compute them.

        PyTorch refuses a sparse matrix with more entries than rows times columns.

        Args:
            bank: (vectors, g).
            indices, weights: flattened, int32 and float32.
            bags: the module's offsets.
        """
        shape = (len(bags.inputs) - 1, len(bank))
        if len(indices) > shape[0] * shape[1] or not _entries_in_any_order():
            return None
        pattern = torch.sparse_csr_tensor(
            bags.inputs, indices, weights, shape, check_invariants=False
        )
        return Tiles(pattern, bank.t(), weights.view(-1, len(bags.components)), bags.components)

    def product(self, x: Tensor) -> Tensor:
        """Return A·x, each component k times: (R, rank · k) float32.

        Args:
            x: (R, 1, in_features).
        """
        tiles = x.to(self.weights.dtype).reshape(-1, len(self.vectors))
        found: Tensor = torch.sparse.sampled_addmm(self.pattern, tiles, self.vectors, beta=0.0)
        return found.values().view(self.weights.shape).mul_(self.weights).mm(self.components)


@lru_cache
def _entries_in_any_order() -> bool:
    """Return whether this PyTorch computes a row's entries in their order, repeated ones too.

    Its documentation asks for sorted and different entries, so a later version may not.
    """
    bank = torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0]])
    x = torch.tensor([[13.0, 17.0], [19.0, 23.0]])
    indices = torch.tensor([2, 0, 0, 1, 1, 0], dtype=torch.int32)
    starts = torch.tensor([0, 3, 6], dtype=torch.int32)
    with warnings.catch_warnings():  # PyTorch warns once that sparse CSR tensors are in beta
        warnings.simplefilter("ignore")
        zero = torch.zeros(6)
        pattern = torch.sparse_csr_tensor(starts, indices, zero, (2, 3), check_invariants=False)
        found = torch.sparse.sampled_addmm(pattern, x, bank.t(), beta=0.0).values()
    return torch.equal(found, (bank[indices] * x.repeat_interleave(3, dim=0)).sum(1))
