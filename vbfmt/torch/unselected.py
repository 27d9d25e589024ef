"""Composing with a gradient for every logit, so that training can look for better vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vbfmt.errors import ModelError
from vbfmt.torch.selected import gradient_of_bank, mix


def compose_with_all_gradients(bank: Tensor, indices: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    """Return the rows (N, b) of `compose`, with a gradient for the logits of every vector.

    Args:
        bank: (h, b).
        indices: (N, k), the vectors that each row selects.
        blocks: logits (n, h) each, N rows in all.
    """
    apply: Any = _ComposeWithAllGradients.apply
    rows: Tensor = apply(bank, indices, *blocks)[0]
    return rows


class _ComposeWithAllGradients(torch.autograd.Function):
    """u = Σ wᵢ α_i as `compose`, but logits that are not selected have a gradient, too.

    For a vector α_j that a row u does not select it is w₍ₖ₎ ⟨∂L/∂u, α_j − u⟩, with w₍ₖ₎ the row's
    smallest weight: what it would be if α_j were the last of those selected, to first order. A
    logit then rises as long as its vector would lower the loss, until it is selected.
    """

    @staticmethod
    def forward(bank: Tensor, indices: Tensor, *blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Compose all rows (N, b), from bank (h, b), indices (N, k) and logits (n, h) each.

        Returns:
            The rows, and the weights (N, k), which are not to be differentiated.
        """
        return mix(bank, indices, blocks)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep what the gradients need."""
        bank, indices, *blocks = inputs
        rows, weights = output
        ctx.mark_non_differentiable(weights)
        ctx.save_for_backward(bank, indices, weights, rows)
        ctx.sizes = [len(block) for block in blocks]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of bank and logits; the indices have none."""
        gradient, _ = gradients
        if torch.is_grad_enabled():
            raise ModelError(
                "no second derivatives where logits that are not selected have a gradient",
                advice="differentiate once, without create_graph=True",
            )
        bank, indices, weights, rows = ctx.saved_tensors
        # ⟨∂L/∂u, α_j − u⟩ of every row and vector.
        slopes = torch.addmm((gradient * rows).sum(1, keepdim=True), gradient, bank.t(), beta=-1)
        selected = weights * slopes.gather(1, indices)
        of_logits = slopes.mul_(weights.amin(1, keepdim=True)).scatter_(1, indices, selected)
        blocks: Sequence[Tensor] = torch.split(of_logits, ctx.sizes)
        of_bank = None
        if ctx.needs_input_grad[0]:
            of_bank = gradient_of_bank(bank, indices, weights, gradient)
        return (of_bank, None, *blocks)
