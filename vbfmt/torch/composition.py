"""Composing sub-vectors from the bank (Eq. 3.3): for all layers together, once per forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vbfmt.torch.bank import VectorBank
from vbfmt.torch.selection import select_top_k

if TYPE_CHECKING:
    from vbfmt.torch.admixture import Admixture


def compose(bank: Tensor, logits: Sequence[Tensor], k: int) -> Tensor:
    """u = Σ wᵢ α_i with w = Softmax(TopK(σ, k)) for every row σ of all logits: (N, b).

    Differentiable in the bank and the logits; logits that are not selected get a zero gradient,
    as in the paper's Algorithm 1. The k · N · b selected values are never all in memory.

    Args:
        bank: (h, b), any floating dtype.
        logits: (n, h) each, of the bank's dtype and device.
        k: how many vectors a sub-vector selects, 1 ≤ k ≤ h.
    """
    # Many small kernels cost a GPU more than one copy; a processor's caches prefer small blocks.
    blocks = logits if bank.device.type == "cpu" else [torch.cat(list(logits))]
    indices = select_top_k(blocks, k)
    places = torch.split(indices, [len(block) for block in blocks])
    top = torch.cat([block.gather(1, at) for block, at in zip(blocks, places, strict=True)])
    weights = top.softmax(dim=1).to(bank.dtype)
    return nn.functional.embedding_bag(indices, bank, per_sample_weights=weights, mode="sum")


class Composition:
    """One adapter's sub-vectors during one pass through the model.

    Between `begin` and `end` every layer takes its slice of what was composed at `begin`. Outside
    of such a pass (a part of the model is called alone) a layer composes its own rows.

    Activation checkpointing runs parts of the model again during the backward pass, after `end`.
    Where the first run recorded a graph (``use_reentrant=False``), the second must see the same
    tensors, so they are kept until the next pass with gradients. Where it did not
    (``use_reentrant=True``), the second run is differentiated by itself, and the layer composes
    its own rows.
    """

    def __init__(self, bank: VectorBank, topk: int) -> None:
        self.bank = (bank,)  # a tuple, so that no module takes it for a part of itself
        self.topk = topk
        self.layers: list[Admixture] = []
        self._current: dict[int, Tensor] | None = None
        self._previous: dict[int, Tensor] | None = None
        self._recording = False
        self._unrecorded: set[int] = set()

    def begin(self) -> None:
        """Compose the sub-vectors of all layers."""
        self._current = None
        self._recording = torch.is_grad_enabled()
        if self._recording:  # a pass without gradients leaves alone what a backward pass may need
            self._previous = None
            self._unrecorded = set()
        rows: dict[int, Tensor] = {}
        by_device: dict[torch.device, list[int]] = {}
        for position, layer in enumerate(self.layers):
            by_device.setdefault(layer.logits.device, []).append(position)
        for device, positions in by_device.items():
            logits = [self.layers[position].logits for position in positions]
            composed = compose(self.bank[0].weight.to(device), logits, self.topk)
            parts = torch.split(composed, [len(block) for block in logits])
            rows.update(zip(positions, parts, strict=True))
        self._current = rows

    def end(self) -> None:
        """The pass is over."""
        # A compiler sees to checkpointing itself.
        if self._recording and not torch.compiler.is_compiling():
            self._previous = self._current
        self._current = None

    def rows_of(self, position: int) -> Tensor | None:
        """A layer's sub-vectors (n, b), or None if it is to compose them itself."""
        again = in_backward()
        if again and position in self._unrecorded:
            return None
        rows = self._current or (self._previous if again else None)
        if rows is None:
            return None
        if self._recording and not again and not torch.is_grad_enabled():
            self._unrecorded.add(position)
        return rows[position]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles of a model do not hold what belongs to one pass."""
        return {**self.__dict__, "_current": None, "_previous": None}


def in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread (as checkpointing itself asks)."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1
