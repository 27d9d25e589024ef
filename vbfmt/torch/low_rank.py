"""Compute y + B·(A·x) as one step of autograd, which is faster for few tokens.

If y is the output of a plain `nn.Linear`, the layer's own product is part of the step. Then B·(A·x)
is added to the output in place, and so are the gradients of x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as all_modules

_HOOKS_OF_ALL_MODULES = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
)
"""Names of PyTorch's dictionaries of hooks that all modules call."""


def can_add_in_one_step(x: Tensor) -> bool:
    """Return whether one step gives the same result as separate operations.

    It does not within autocast, which casts in forward but not in backward; not under torch.compile
    and torch.func transforms, which must see the separate operations; and not for nested tensors,
    which cannot be reshaped to two dimensions.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled(x.device.type)
        or x.is_nested
        or torch._C._functorch.maybe_current_level() is not None
    )


def is_plain_linear(layer: nn.Module) -> bool:
    """Return whether a call of the layer only computes `nn.functional.linear` with a frozen weight.

    Such a layer has no hooks, no replaced `forward` and no compiled call, and its weight is in
    plain storage.
    """
    if type(layer) is not nn.Linear or "forward" in layer.__dict__:
        return False
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    return not (
        weight is None
        or type(weight) is not nn.Parameter
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or layer._compiled_call_impl is not None
        or any(getattr(all_modules, name) for name in _HOOKS_OF_ALL_MODULES)
    )


def add_low_rank(x: Tensor, result: Tensor, rows: Tensor, rank: int) -> Tensor:
    """Return result + B·(A·x), computed in the dtype of `rows` and rounded once.

    Args:
        x: (…, in_features), any floating dtype.
        result: (…, out_features). The returned tensor has its dtype.
        rows: the sub-vectors (n, b) of A (rank, in_features), then those of Bᵀ.
    """
    apply: Any = _AddLowRank.apply
    added: Tensor = apply(x, result, rows.contiguous(), rank)
    return added


def linear_with_low_rank(x: Tensor, layer: nn.Linear, rows: Tensor, rank: int) -> Tensor:
    """Return W·x + bias + B·(A·x) for a layer for which `is_plain_linear` is true.

    The result is that of `add_low_rank` for the layer's output.
    """
    apply: Any = _LinearWithLowRank.apply
    result: Tensor = apply(x, layer.weight, layer.bias, rows.contiguous(), rank)
    return result


class _AddLowRank(torch.autograd.Function):
    """result + B·(A·x) with its own backward pass.

    If the backward pass must be differentiable, it uses only differentiable operations on the
    inputs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, result: Tensor, rows: Tensor, rank: int) -> Tensor:
        """Return the sum; A·x is kept for the backward pass too."""
        flat, a, bt = _matrices(x, rows, rank)
        outer = result.reshape(-1, bt.shape[1])
        low = torch.mm(flat, a.t())
        ctx.save_for_backward(x, rows, low)
        ctx.rank = rank
        if result.dtype == low.dtype:
            return torch.addmm(outer, low, bt).view(result.shape)
        return (outer + torch.mm(low, bt)).to(result.dtype).view(result.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, result and rows."""
        (gradient,) = gradients
        x, rows, low = ctx.saved_tensors
        flat, a, bt = _matrices(x, rows, ctx.rank)
        outer = gradient.reshape(-1, bt.shape[1]).to(rows.dtype)
        inner = torch.mm(outer, bt.t())
        of_x = of_rows = None
        if ctx.needs_input_grad[0]:
            of_x = torch.mm(inner, a).to(x.dtype).view(x.shape)
        if ctx.needs_input_grad[2]:
            of_rows = _gradient_of_rows(rows, flat, a, low, inner, outer)
        return of_x, gradient, of_rows, None


class _LinearWithLowRank(torch.autograd.Function):
    """The same with the frozen layer's own product; weight and bias have no gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, rank: int
    ) -> Tensor:
        """Return the sum; A·x is kept for the backward pass too."""
        result = nn.functional.linear(x, weight, bias).contiguous()
        flat, a, bt = _matrices(x, rows, rank)
        outer = result.view(-1, bt.shape[1])
        low = torch.mm(flat, a.t())
        ctx.save_for_backward(x, weight, rows, low)
        ctx.rank = rank
        if result.dtype == low.dtype:
            outer.addmm_(low, bt)
        else:
            outer.copy_(torch.mm(low, bt).add_(outer))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and rows."""
        (gradient,) = gradients
        x, weight, rows, low = ctx.saved_tensors
        flat, a, bt = _matrices(x, rows, ctx.rank)
        given = gradient.reshape(-1, bt.shape[1])
        outer = given.to(rows.dtype)
        inner = torch.mm(outer, bt.t())
        of_x = of_rows = None
        if ctx.needs_input_grad[0]:
            of_x = torch.mm(given, weight)
            if of_x.dtype == inner.dtype:
                of_x = (
                    torch.addmm(of_x, inner, a)
                    if torch.is_grad_enabled()
                    else of_x.addmm_(inner, a)
                )
            else:
                of_x = (of_x + torch.mm(inner, a)).to(of_x.dtype)
            of_x = of_x.view(x.shape)
        if ctx.needs_input_grad[3]:
            of_rows = _gradient_of_rows(rows, flat, a, low, inner, outer)
        return of_x, None, None, of_rows, None


def _gradient_of_rows(
    rows: Tensor, flat: Tensor, a: Tensor, low: Tensor, inner: Tensor, outer: Tensor
) -> Tensor:
    """Return the gradient of the rows (n, b): of A, then of Bᵀ."""
    b = rows.shape[1]
    if torch.is_grad_enabled():  # for a second derivative, compute it from the inputs again
        of_a, of_bt = torch.mm(inner.t(), flat), torch.mm(torch.mm(flat, a.t()).t(), outer)
        return torch.cat([of_a.view(-1, b), of_bt.view(-1, b)])
    of_rows = torch.empty_like(rows)
    count = a.numel() // b
    torch.mm(inner.t(), flat, out=of_rows[:count].view(a.shape))
    torch.mm(low.t(), outer, out=of_rows[count:].view(-1, outer.shape[1]))
    return of_rows


def _matrices(x: Tensor, rows: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return x (tokens, in_features) in the dtype of the rows, A and Bᵀ."""
    in_features = x.shape[-1]
    count = rank * in_features // rows.shape[1]
    flat = x.reshape(-1, in_features).to(rows.dtype)
    return flat, rows[:count].view(rank, in_features), rows[count:].view(rank, -1)
