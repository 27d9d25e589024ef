"""Compose sub-vectors with a gradient for every logit, so that training can find better vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vbfmt.errors import ModelError
from vbfmt.torch.one_step import gradient_of_bank, mix


def compose_with_all_gradients(
    bank: Tensor, indices: Tensor, top: Tensor, blocks: Sequence[Tensor]
) -> Tensor:
    """Return the rows (N, b) of `compose`, with a gradient for the logits of every vector.

    Args:
        bank: (h, b).
        indices: (N, k), the vectors that each row selects.
        top: their logits (N, k), without a gradient.
        blocks: logits (n, h) each, N rows in all.
    """
    apply: Any = _ComposeWithAllGradients.apply
    rows: Tensor = apply(bank, indices, top, *blocks)[0]
    return rows


class _ComposeWithAllGradients(torch.autograd.Function):
    """Return u = Σ wᵢ α_i as `compose` does, but give unselected logits a gradient too.

    For a vector α_j that a sub-vector u does not select, it is w₍ₖ₎ ⟨∂L/∂u, α_j − u⟩, where w₍ₖ₎ is
    the smallest selected weight. To first order, this is the gradient if α_j were selected in place
    of the vector with that weight. So a logit rises while its vector would lower the loss, until it
    is selected.
    """

    @staticmethod
    def forward(
        bank: Tensor, indices: Tensor, top: Tensor, *blocks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compose all rows (N, b), from bank (h, b), indices and their logits (N, k).

        Returns:
            The rows, and the weights (N, k), which are not differentiable.
        """
        return mix(bank, indices, top)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        """Save the tensors that the backward pass needs."""
        bank, indices, _, *blocks = inputs
        rows, weights = output
        ctx.mark_non_differentiable(weights)
        ctx.save_for_backward(bank, indices, weights, rows)
        ctx.sizes = [len(block) for block in blocks]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of bank and logits; what was selected has none."""
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
        return (of_bank, None, None, *blocks)
