"""B·(A·x) for every sample with factors of its own, composed of rows while it is computed.

A is composed for the samples at hand. B is not where there is one position per sample, as in
decoding: its product is a sum over vectors of the bank, weighted by c·w with c = A·x. For more
positions, composing it once takes less. Neither is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """The rows of one module for the samples of a batch, in a frame's form.

    Attributes:
        samples: which of the batch's samples have them, (R,) int64; None for all.
        bank: (…, g) float32, what the indices are of: the memory of all banks.
        a, b: indices, flat int32: (R, rank, a_tiles, k) and (R, b_tiles, rank, k).
        a_weights, b_weights: their weights, flat float32.
        a_bags, b_bags, sums: where each sum begins: multiples of k (for A and for B), and of
            rank · k. int32.
        rank: rows of A.
    """

    samples: Tensor | None
    bank: Tensor
    a: Tensor
    b: Tensor
    a_weights: Tensor
    b_weights: Tensor
    a_bags: Tensor
    b_bags: Tensor
    sums: Tensor
    rank: int


def low_rank_update(x: Tensor, rows: Rows, result: Tensor) -> Tensor:
    """result + B·(A·x), computed in float32, or as autocast has it, and rounded once.

    Args:
        x: (R, T, in_features).
        rows: of R samples.
        result: (R, T, out_features).

    Returns:
        (R, T, out_features) in the dtype of `result`.
    """
    n, positions, in_features = x.shape
    a = _sums(rows.bank, rows.a, rows.a_bags, rows.a_weights).view(n, rows.rank, in_features)
    low = torch.bmm(x.to(a.dtype), a.transpose(1, 2))
    if positions == 1:
        added = _weighted(low.view(n, 1, rows.rank, 1), rows).view(n, 1, -1)
    else:
        b = _sums(rows.bank, rows.b, rows.b_bags, rows.b_weights)
        b = b.view(n, -1, rows.rank, rows.bank.shape[1]).transpose(1, 2).reshape(n, rows.rank, -1)
        if low.dtype == result.dtype == b.dtype:
            return torch.baddbmm(result, low, b)
        added = torch.bmm(low, b.to(low.dtype))
    if added.dtype == torch.promote_types(added.dtype, result.dtype):
        return added.add_(result).to(result.dtype)  # no memory for another sum
    return (result + added).to(result.dtype)


def _weighted(low: Tensor, rows: Rows) -> Tensor:
    """B·c as a sum over the bank with the weights c·w."""
    n, rank = low.shape[0], rows.rank
    weights = rows.b_weights.view(n, -1, rank, rows.b_weights.numel() // rows.b_bags.numel())
    weights = weights * low.to(weights.dtype)
    return _sums(rows.bank, rows.b, rows.sums, weights.view(-1))


def _sums(bank: Tensor, indices: Tensor, bags: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of vectors of the bank, (len(bags), g)."""
    return torch.embedding_bag(bank, indices, bags, False, 0, False, weights)[0]
