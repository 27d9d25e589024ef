"""Compute B·(A·x) for every sample, and compose the factors of its adapter during the computation.

With one position per sample, as in decoding, B is not composed: its product with c = A·x is a sum
over vectors of the bank, weighted by c·w. On a CPU and without gradients, A is not composed then
either. For more positions, composing takes fewer operations. Neither factor is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vbfmt.torch.pool.tiles import Tiles


class Pieces(NamedTuple):
    """The rows of one module, taken from those of a batch.

    Attributes:
        a, b: indices, flattened int32: (R, rank, a_tiles, k) and (R, b_tiles, rank, k).
        a_weights, b_weights: their weights, flattened float32.
        a_bags, b_bags, sums: int32 offsets where each sum begins: multiples of k for A and for B,
            and multiples of rank · k.
        tiles: A's rows by tile; None where A is composed in any case, as on a GPU.
    """

    a: Tensor
    b: Tensor
    a_weights: Tensor
    b_weights: Tensor
    a_bags: Tensor
    b_bags: Tensor
    sums: Tensor
    tiles: Tiles | None


class Rows(NamedTuple):
    """The rows of one module for the samples of a batch, as a `Frame` stores them.

    Attributes:
        samples: positions of these samples in the batch, (R,) int64; None for all samples.
        bank: the memory of all banks, (…, g) float32, to which the indices refer.
        indices, weights: those of all modules, flattened, int32 and float32.
        start, middle, stop: positions in `indices` where A's rows begin, B's begin and B's end.
        rank, k: the rank, and the number of vectors that each row selects.
        pieces: the module's part of `indices` and `weights`.
    """

    samples: Tensor | None
    bank: Tensor
    indices: Tensor
    weights: Tensor
    start: int
    middle: int
    stop: int
    rank: int
    k: int
    pieces: Pieces

    def cut(self) -> Pieces:
        """Return the module's part of `indices` and `weights`, as views."""
        a, b = slice(self.start, self.middle), slice(self.middle, self.stop)

        def multiples(stop: int, step: int) -> Tensor:
            return torch.arange(0, stop, step, dtype=torch.int32, device=self.bank.device)

        return Pieces(
            self.indices[a],
            self.indices[b],
            self.weights[a],
            self.weights[b],
            multiples(self.middle - self.start, self.k),
            multiples(self.stop - self.middle, self.k),
            multiples(self.stop - self.middle, self.k * self.rank),
            None,
        )


def low_rank_update(x: Tensor, rows: Rows, result: Tensor) -> Tensor:
    """Return result + B·(A·x), computed in float32 or autocast's dtype, and rounded once.

    Args:
        x: (R, T, in_features).
        rows: rows of R samples.
        result: (R, T, out_features).

    Returns:
        (R, T, out_features) in the dtype of `result`.
    """
    # A compiled graph gets the whole rows, because CUDA graphs copy every tensor that they get.
    pieces = rows.cut() if torch.compiler.is_compiling() else rows.pieces
    if x.shape[1] == 1:
        return _sum(result, _decoded(x, rows, pieces))
    low = _times_a(x, rows, pieces)
    b = _sums(rows.bank, pieces.b, pieces.b_bags, pieces.b_weights)
    b = b.view(len(x), -1, rows.rank, rows.bank.shape[1]).transpose(1, 2)
    b = b.reshape(len(x), rows.rank, -1)
    if low.dtype == result.dtype == b.dtype:
        return torch.baddbmm(result, low, b)
    return _sum(result, torch.bmm(low, b.to(low.dtype)))


def _decoded(x: Tensor, rows: Rows, pieces: Pieces) -> Tensor:
    """Return B·(A·x) for one position per sample, (R, 1, out_features) float32."""
    n = len(x)
    if pieces.tiles is None or torch.is_grad_enabled():
        low = _times_a(x, rows, pieces).to(pieces.b_weights.dtype).unsqueeze(3)
    else:
        low = pieces.tiles.product(x).view(n, 1, rows.rank, rows.k)
    weights = pieces.b_weights.view(n, -1, rows.rank, rows.k) * low  # c·w
    return _sums(rows.bank, pieces.b, pieces.sums, weights.view(-1)).view(n, 1, -1)


def _times_a(x: Tensor, rows: Rows, pieces: Pieces) -> Tensor:
    """Return A·x, (R, T, rank)."""
    a = _sums(rows.bank, pieces.a, pieces.a_bags, pieces.a_weights)
    a = a.view(len(x), rows.rank, -1)
    return torch.bmm(x.to(a.dtype), a.transpose(1, 2))


def _sum(result: Tensor, added: Tensor) -> Tensor:
    """Return result + added in the dtype of `result`, rounded once, in one step if possible."""
    if added.dtype == result.dtype:
        return added.add_(result)  # in place
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return (result + added).to(result.dtype)
    return torch.add(result, added, out=torch.empty_like(result))


def _sums(bank: Tensor, indices: Tensor, bags: Tensor, weights: Tensor) -> Tensor:
    """Return weighted sums of vectors of the bank, (len(bags), g)."""
    return torch.embedding_bag(bank, indices, bags, False, 0, False, weights)[0]
