"""Compose sub-vectors as one step of autograd, on CPUs: one buffer holds all gradients of
logits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn


def can_compose_in_one_step(bank: Tensor) -> bool:
    """Return whether `compose_in_one_step` gives the same as separate operations, in less time.

    It does not on a GPU, where `embedding_bag` starts fewer kernels; not under torch.compile and
    torch.func transforms, which must see the separate operations; and not in half precision, which
    the separate operations sum more exactly.
    """
    return (
        torch.is_grad_enabled()
        and bank.device.type == "cpu"
        and bank.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and torch._C._functorch.maybe_current_level() is None
    )


def compose_in_one_step(
    bank: Tensor, indices: Tensor, top: Tensor, blocks: Sequence[Tensor]
) -> Tensor:
    """Return the composed rows (N, b), as `vbfmt.torch.composition.compose` does.

    Args:
        bank: (h, b).
        indices: (N, k), the vectors that each row selects.
        top: their logits (N, k), without a gradient.
        blocks: logits (n, h) each, N rows in all.
    """
    apply: Any = _Compose.apply
    rows: Tensor = apply(bank, indices, top, *blocks)
    return rows


def mix(bank: Tensor, indices: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums Σ wᵢ α_i, (N, b), and the weights w = Softmax(top), (N, k)."""
    weights = top.softmax(dim=1).to(bank.dtype)
    rows = nn.functional.embedding_bag(indices, bank, per_sample_weights=weights, mode="sum")
    return rows, weights


def gradient_of_bank(bank: Tensor, indices: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
    """Return the bank's gradient (h, b) from that of the rows (N, b)."""
    total = torch.zeros_like(bank)
    for column in range(indices.shape[1]):
        total.index_add_(0, indices[:, column], gradient * weights[:, column : column + 1])
    return total


class _Compose(torch.autograd.Function):
    """u = Σ wᵢ α_i; logits that are not selected have a zero gradient."""

    @staticmethod
    def forward(ctx: Any, bank: Tensor, indices: Tensor, top: Tensor, *blocks: Tensor) -> Tensor:
        """Compose all rows (N, b)."""
        rows, weights = mix(bank, indices, top)
        ctx.save_for_backward(bank, indices, weights, *blocks)
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the bank and the logits; `indices` and `top` have none."""
        (gradient,) = gradients
        bank, indices, weights, *blocks = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative, recompute them from the inputs
            weights = torch.cat(blocks).gather(1, indices).softmax(dim=1).to(bank.dtype)
        of_bank = None
        if ctx.needs_input_grad[0]:
            of_bank = gradient_of_bank(bank, indices, weights, gradient)
        columns = range(indices.shape[1])
        slopes = torch.stack(
            [(bank.index_select(0, indices[:, at]) * gradient).sum(1) for at in columns], dim=1
        )
        of_top = weights * (slopes - (weights * slopes).sum(1, keepdim=True))
        of_logits = blocks[0].new_zeros(len(indices), blocks[0].shape[1])
        of_logits.scatter_(1, indices, of_top.to(of_logits.dtype))
        sizes = [len(block) for block in blocks]
        ends = accumulate(sizes)
        parts = [of_logits[end - n : end] for end, n in zip(ends, sizes, strict=True)]
        return (of_bank, None, None, *parts)
