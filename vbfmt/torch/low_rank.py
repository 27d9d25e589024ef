"""y + B·(A·x) as one step of autograd: for few tokens, bookkeeping takes longer than arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def can_add_in_one_step(x: Tensor, result: Tensor, rows: Tensor) -> bool:
    """Return whether one step gives the same as the separate operations.

    Not within autocast, which casts in forward but not in backward. Not under torch.compile and
    torch.func transforms, which must see the separate operations. Not for nested tensors, which
    cannot be reshaped to two dimensions.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled(x.device.type)
        or result.is_nested
        or x.is_nested
        or torch._C._functorch.maybe_current_level() is not None
        or not rows.is_contiguous()
    )


def add_low_rank(x: Tensor, result: Tensor, rows: Tensor, rank: int) -> Tensor:
    """Return result + B·(A·x), computed in the dtype of `rows` and rounded once.

    Args:
        x: (…, in_features), any floating dtype.
        result: (…, out_features), the dtype of what is returned.
        rows: the sub-vectors (n, b) of A (rank, in_features), then those of Bᵀ.
    """
    apply: Any = _AddLowRank.apply
    added: Tensor = apply(x, result, rows, rank)
    return added


class _AddLowRank(torch.autograd.Function):
    """If the backward pass is to be differentiated itself, it consists of differentiable operations
    on the inputs alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, result: Tensor, rows: Tensor, rank: int) -> Tensor:
        """Return the sum; A·x is kept for the backward pass too."""
        flat, a, bt = _matrices(x, rows, rank)
        outer = result.reshape(-1, bt.shape[1])
        low = flat @ a.t()
        ctx.save_for_backward(x, rows, low)
        ctx.rank = rank
        if result.dtype == low.dtype:
            return torch.addmm(outer, low, bt).view(result.shape)
        return (outer + low @ bt).to(result.dtype).view(result.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, result and rows."""
        (gradient,) = gradients
        x, rows, low = ctx.saved_tensors
        flat, a, bt = _matrices(x, rows, ctx.rank)
        outer = gradient.reshape(-1, bt.shape[1]).to(rows.dtype)
        inner = outer @ bt.t()
        of_x = of_rows = None
        if ctx.needs_input_grad[0]:
            of_x = (inner @ a).to(x.dtype).view(x.shape)
        if ctx.needs_input_grad[2]:
            b = rows.shape[1]
            if torch.is_grad_enabled():  # low is not an input: to be differentiated again
                low = flat @ a.t()
            of_a, of_bt = inner.t() @ flat, low.t() @ outer
            of_rows = torch.cat([of_a.view(-1, b), of_bt.view(-1, b)])
        return of_x, gradient, of_rows, None


def _matrices(x: Tensor, rows: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return x (tokens, in_features) in the dtype of the rows, A and Bᵀ."""
    in_features = x.shape[-1]
    count = rank * in_features // rows.shape[1]
    flat = x.reshape(-1, in_features).to(rows.dtype)
    return flat, rows[:count].view(rank, in_features), rows[count:].view(rank, -1)
