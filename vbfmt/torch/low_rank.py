"""Compute y + B·(A·x) as one step of autograd, which is faster for few tokens.

If y is the output of a plain `nn.Linear`, the layer's own product is part of the step. Then B·(A·x)
is added to the output in place, and so are the gradients of x. Everything else is computed before
that product, which evicts x, the gradient and the code from the caches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import _SingleLevelFunction
from torch.nn.functional import linear
from torch.nn.modules import module as all_modules

_HOOKS_OF_ALL_MODULES = (
    all_modules._global_forward_pre_hooks,
    all_modules._global_forward_hooks,
    all_modules._global_backward_pre_hooks,
    all_modules._global_backward_hooks,
)
"""PyTorch's dictionaries of hooks that all modules call. It only writes to them."""

# Each of these is called for every layer.
_any_autocast: Callable[[], bool] = torch._C._is_any_autocast_enabled
_level_of_transforms: Callable[[], int | None] = torch._C._functorch.maybe_current_level
_unwrapped: Callable[[Tensor], Tensor] = torch._C._functorch.unwrap_if_dead


def is_special(x: Tensor) -> bool:
    """Return whether operations on x may not be combined in one step of autograd.

    That is so within autocast, which casts in forward but not in backward; under torch.func
    transforms, which must see each operation; and for nested tensors, which cannot be reshaped to
    two dimensions. Callers check for torch.compile themselves.
    """
    return (
        (_any_autocast() and torch.is_autocast_enabled(x.device.type))
        or x.is_nested
        or _level_of_transforms() is not None
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
        or "bias" not in layer._parameters
        or type(weight) is not nn.Parameter
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or layer._compiled_call_impl is not None
        or any(_HOOKS_OF_ALL_MODULES)
    )


def add_low_rank(x: Tensor, result: Tensor, a: Tensor, bt: Tensor) -> Tensor:
    """Return result + B·(A·x), computed in the dtype of `a` and rounded once.

    Args:
        x: (…, in_features), any floating dtype.
        result: (…, out_features). The returned tensor has its dtype.
        a: A, (rank, in_features).
        bt: Bᵀ, (rank, out_features). It needs a gradient if `a` does.
    """
    apply: Any = _AddLowRank.apply
    added: Tensor = apply(x, result, a, bt)
    return added


def linear_with_low_rank(x: Tensor, layer: nn.Linear, a: Tensor, bt: Tensor) -> Tensor:
    """Return W·x + bias + B·(A·x) for a layer for which `is_plain_linear` is true.

    The result is that of `add_low_rank` for the layer's output. Not for use within torch.compile
    and torch.func transforms.
    """
    function: Any = _LinearWithLowRank
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    # A result of a transform that has ended is still wrapped.
    result: Tensor = function.apply(_unwrapped(x), weight, bias, a, bt)
    return result


class _AddLowRank(torch.autograd.Function):
    """result + B·(A·x) with its own backward pass.

    If the backward pass must be differentiable, it uses only differentiable operations on the
    inputs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, result: Tensor, a: Tensor, bt: Tensor) -> Tensor:
        """Return the sum; A·x is kept for the backward pass too."""
        low = linear(_flat(x, a), a)
        ctx.save_for_backward(x, a, bt, low)
        outer = result.reshape(-1, bt.size(1))
        if result.dtype == low.dtype:
            return torch.addmm(outer, low, bt).view(result.shape)
        return (outer + torch.mm(low, bt)).to(result.dtype).view(result.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, result, A and Bᵀ."""
        (gradient,) = gradients
        x, a, bt, low = ctx.saved_tensors
        outer = _flat(gradient, bt)
        inner = linear(outer, bt)
        of_x = of_a = of_bt = None
        if ctx.needs_input_grad[2]:
            of_a, of_bt = _gradients_of_factors(_flat(x, a), a, low, inner, outer)
        if ctx.needs_input_grad[0]:
            of_x = torch.mm(inner, a).to(x.dtype).view(x.shape)
        return of_x, gradient, of_a, of_bt


class _LinearWithLowRank(_SingleLevelFunction):
    """The same with the frozen layer's own product; weight and bias have no gradients.

    `torch.autograd.Function.apply` does more, for torch.func transforms and default arguments. For
    few tokens, that takes as long as the update's products.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, bt: Tensor
    ) -> Tensor:
        """Return the sum; A·x is kept for the backward pass too."""
        flat, shape = x.reshape(-1, a.size(1)), (*x.shape[:-1], bt.size(1))
        low = linear(flat if flat.dtype == a.dtype else flat.to(a.dtype), a)
        ctx.save_for_backward(x, weight, a, bt, low)
        result = linear(flat, weight, bias)
        if result.dtype == low.dtype:
            result.addmm_(low, bt)
        else:
            result.copy_(torch.mm(low, bt).add_(result))
        return result.view(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, A and Bᵀ."""
        (gradient,) = gradients
        x, weight, a, bt, low = ctx.saved_tensors
        given = gradient.reshape(-1, bt.size(1))
        outer = given if given.dtype == bt.dtype else given.to(bt.dtype)
        inner = linear(outer, bt)
        of_x = of_a = of_bt = None
        if ctx.needs_input_grad[3]:
            of_a, of_bt = _gradients_of_factors(_flat(x, a), a, low, inner, outer)
        if ctx.needs_input_grad[0]:
            of_x = torch.mm(given, weight)
            if torch.is_grad_enabled() or of_x.dtype != a.dtype:
                of_x = (of_x + torch.mm(inner, a)).to(of_x.dtype)
            else:
                of_x.addmm_(inner, a)
            of_x = of_x.view_as(x)
        return of_x, None, None, of_a, of_bt


def _gradients_of_factors(
    flat: Tensor, a: Tensor, low: Tensor, inner: Tensor, outer: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of A (rank, in_features) and Bᵀ (rank, out_features)."""
    if torch.is_grad_enabled():  # for a second derivative, compute it from the inputs again
        low = linear(flat, a)
    return torch.mm(inner.t(), flat), torch.mm(low.t(), outer)


def _flat(x: Tensor, factor: Tensor) -> Tensor:
    """Return x (…, features) in two dimensions and in the dtype of a factor (rank, features)."""
    flat = x.reshape(-1, factor.size(1))
    return flat if flat.dtype == factor.dtype else flat.to(factor.dtype)
