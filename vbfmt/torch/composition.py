"""Compose sub-vectors from the bank (Eq. 3.3): for all layers together, once per forward pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from vbfmt.errors import ModelError
from vbfmt.torch.all_gradients import compose_with_all_gradients
from vbfmt.torch.bank import VectorBank
from vbfmt.torch.one_step import can_compose_in_one_step, compose_in_one_step
from vbfmt.torch.selection import select_top_k
from vbfmt.torch.sharding import gathered, is_sharded, require_whole

Select = Callable[[Tensor, int], "tuple[Tensor | None, Tensor]"]
Matrices = tuple[Tensor, Tensor]  # A (rank, in_features) and Bᵀ (rank, out_features) of a layer

_FORWARD = -1  # PyTorch's number of the current backward pass if none is running


def compose(
    bank: Tensor,
    logits: Sequence[Tensor],
    k: int,
    *,
    train_unselected: bool = False,
    select: Select | None = None,
) -> Tensor:
    """Return u = Σ wᵢ α_i with w = Softmax(TopK(σ, k)) for every row σ of all logits: (N, b).

    Differentiable in the bank and the logits; logits that are not selected get a zero gradient,
    as in the paper's Algorithm 1. The k · N · b selected values are never all in memory.

    Args:
        bank: (h, b), any floating dtype.
        logits: (n, h) each, of the bank's dtype and device.
        k: vectors per sub-vector, 1 ≤ k ≤ h.
        train_unselected: give the logits that are not selected a gradient too; see `VectorBank`.
        select: a custom selection. It gets logits (N, h) and k, and returns indices (N, k'), or
            None for the whole bank, and the weights.
    """
    if select is not None:
        chosen, weights = select(torch.cat(list(logits)), k)
        weights = weights.to(bank.dtype)
        return weights @ bank if chosen is None else _mixed(bank, chosen, weights)
    # On a GPU, one copy costs less than many small kernels. On a CPU, small blocks stay in the
    # cache.
    blocks = logits if bank.device.type == "cpu" else [torch.cat(list(logits))]
    indices, top = select_top_k(blocks, k)
    if train_unselected and torch.is_grad_enabled():
        return compose_with_all_gradients(bank, indices, top, blocks)
    if can_compose_in_one_step(bank):
        return compose_in_one_step(bank, indices, top, blocks)
    parts = torch.split(indices, [len(block) for block in blocks])
    top = torch.cat([block.gather(1, at) for block, at in zip(blocks, parts, strict=True)])
    weights = top.softmax(dim=1).to(bank.dtype)
    return _mixed(bank, indices, weights)


def _mixed(bank: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Return Σ wᵢ α_i: indices and weights (N, k) → (N, b)."""
    try:
        return nn.functional.embedding_bag(indices, bank, per_sample_weights=weights, mode="sum")
    except RuntimeError:  # within torch.func transforms, which do not know this function
        return (bank[indices] * weights.unsqueeze(-1)).sum(1)


def compose_alone(
    bank: Tensor,
    logits: Tensor,
    k: int,
    *,
    train_unselected: bool = False,
    select: Select | None = None,
) -> Tensor:
    """Compose the sub-vectors (n, b) of one layer, within its own forward pass.

    The tensors that autograd saves here are hidden from activation checkpointing. It runs a layer
    twice and requires that both runs save equally many tensors, but one run may use the sub-vectors
    that were composed for all layers, and so save none.
    """
    with ExitStack() as stack:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            with suppress(RuntimeError):  # torch.func transforms allow no hooks
                stack.enter_context(saved_tensors_hooks(_keep, _kept))
        return compose(bank, [logits], k, train_unselected=train_unselected, select=select)


def _keep(tensor: Tensor) -> tuple[Tensor, int]:
    return tensor.detach(), tensor._version  # detached: otherwise an output would keep itself alive


def _kept(kept: tuple[Tensor, int]) -> Tensor:
    tensor, version = kept
    if tensor._version != version:  # autograd does not check this for tensors that hooks save
        raise RuntimeError(
            "a tensor needed for the gradient of the vector bank or the logits was modified by an "
            "inplace operation between the forward and the backward pass"
        )
    return tensor


class HasLogits(Protocol):
    """One layer of a composition.

    Attributes:
        logits: (n, h).
        rows: how many of its n sub-vectors belong to A, and how many to B.
        rank: of its update.
        training: whether it is in training mode.
    """

    logits: nn.Parameter
    rows: list[int]
    rank: int
    training: bool


def split_rows(rows: Tensor, layers: Sequence[HasLogits]) -> list[Matrices]:
    """Return the matrices of these layers, as views of their sub-vectors (N, b)."""
    parts = iter(torch.split(rows, [n for layer in layers for n in layer.rows]))
    return [
        (next(parts).reshape(layer.rank, -1), next(parts).reshape(layer.rank, -1))
        for layer in layers
    ]


class Composition:
    """The sub-vectors of one adapter during one forward pass of its model.

    The model's hooks call `begin` before its forward pass and `end` after it. `matrices_of`
    returns to a layer, depending on when the layer asks:

    =====================================  ==================================================
    no pass, or it has ended               None: the layer composes its own
    in a pass of this thread               the layer's part of what `begin` composed
    in a backward pass that began since    None: activation checkpointing runs the layer again
    the pass recorded no gradients and     None: it was interrupted (Ctrl-C calls no hook)
    they are recorded now
    bank or logits were written since      None: it was interrupted, and it is stale
    =====================================  ==================================================

    Each thread has its own pass, so that one can evaluate while another trains. When
    `torch.compile` traces a pass, the matrices are part of the graph. If the graph breaks, the
    layers' slots, which all threads share, hold them until the next part of the graph runs.
    Compiled code reads a slot and never a position, because dynamo would recompile a frame for
    every position.

    Attributes:
        bank: the vector bank.
        training_passes: number of passes with gradients that have begun, for schedules.
    """

    def __init__(
        self, bank: VectorBank, topk: int, selection: Callable[..., Any] | None = None
    ) -> None:
        self.bank = bank
        self._topk = topk
        self._selection = selection
        self.training_passes = 0
        self.layers: list[HasLogits] = []
        self._slots: list[Slot] = []
        self._mine = _PassOfThread()

    @property
    def topk(self) -> int:
        """k, for training and for saving: fixed when the adapter is made."""
        return self._topk

    def add(self, layer: HasLogits) -> Slot:
        """Add a layer, and return the slot for its matrices in compiled passes."""
        slot = Slot(len(self.layers))
        self.layers.append(layer)
        self._slots.append(slot)
        return slot

    def begin(self) -> None:
        """Compose the sub-vectors of all layers."""
        self.end()
        logits = [layer.logits for layer in self.layers]
        require_whole([self.bank.weight, *logits])
        matrices: dict[int, Matrices] = {}
        by_device: dict[torch.device, list[int]] = {}
        for position, each in enumerate(logits):
            by_device.setdefault(each.device, []).append(position)
        for device, positions in by_device.items():
            layers = [self.layers[position] for position in positions]
            composed = compose(
                gathered(self.bank.weight).to(device),
                [gathered(logits[position]) for position in positions],
                self.topk,
                train_unselected=self.bank.train_unselected,
                select=self.select_for(self.layers[0]),
            )
            matrices.update(zip(positions, split_rows(composed, layers), strict=True))
        if torch.is_grad_enabled() and self._selection is not None:
            self.training_passes += 1
        if torch.compiler.is_compiling():  # it cannot trace thread-local data
            for position, slot in enumerate(self._slots):
                slot.matrices = matrices[position]
            return
        recording, backward = torch.is_grad_enabled(), _backward_pass()
        self._mine.current = Pass(
            matrices, recording, _versions([*logits, self.bank.weight]), backward
        )

    def select_for(self, layer: HasLogits) -> Select | None:
        """Return the function that selects a layer's vectors now; None for the k largest logits.

        Raises:
            ModelError: in a backward pass, because a custom selection may be random, and would then
                differ from that of the forward pass.
        """
        selection = self._selection
        if selection is None or not layer.training:
            return None
        if _backward_pass() != _FORWARD:
            raise ModelError(
                "activation checkpointing would select other vectors the second time",
                part="selection",
                found=type(selection).__name__,
                advice="train without activation checkpointing, or without `selection`",
            )
        step = self.training_passes
        return lambda logits, k: selection(logits, k, step)

    def end(self) -> None:
        """Discard the sub-vectors, when the pass has ended or was interrupted."""
        if not torch.compiler.is_compiling():
            self._mine.current = None
        for slot in self._slots:
            slot.matrices = None

    def matrices_of(
        self, slot: Slot, logits: Tensor, *, compiling: bool = False
    ) -> Matrices | None:
        """Return a layer's matrices, or None if the layer must compose them itself.

        Args:
            slot: the layer's, from `add`.
            logits: the layer's, as they are now.
            compiling: whether torch.compile traces the call.
        """
        if compiling:
            return slot.matrices
        found, backward = self._mine.current, torch._C._current_graph_task_id()
        if found is None:
            return slot.matrices if backward == _FORWARD else None
        if found.backward != backward or self._is_stale(found, slot.position, logits):
            return None
        return found.matrices[slot.position]

    def _is_stale(self, found: Pass, position: int, logits: Tensor) -> bool:
        """Return whether `found` was interrupted, so that it must not be used any more."""
        versions = found.versions
        if not versions:
            return False
        if not found.recording and torch.is_grad_enabled():
            return True
        return logits._version != versions[position] or self.bank.weight._version != versions[-1]


@dataclass(eq=False)
class Slot:
    """Holds a layer's matrices between the parts of a compiled pass.

    Attributes:
        position: the layer's position in its composition. Compiled code does not read it.
        matrices: the layer's, during a compiled pass.
    """

    position: int
    matrices: Matrices | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the matrices out of copies and pickles."""
        return {"position": self.position, "matrices": None}


@dataclass(eq=False)
class Pass:
    """The matrices that were composed for one pass.

    Attributes:
        matrices: a layer's position → its matrices.
        recording: whether the pass records gradients.
        versions: of all layers' logits and, last, of the bank, when they were composed.
        backward: number of the backward pass in which this pass began; `_FORWARD` if in none.
    """

    matrices: dict[int, Matrices]
    recording: bool
    versions: list[int]
    backward: int


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    """Return the version counters of tensors, which count writes.

    The list is empty for inference tensors, which have no counter, and for sharded tensors, which
    FSDP replaces during a pass.
    """
    if any(tensor.is_inference() or is_sharded(tensor) for tensor in tensors):
        return []
    return [tensor._version for tensor in tensors]


class _PassOfThread(threading.local):
    """The pass that this thread is in."""

    current: Pass | None = None

    def __reduce__(self) -> tuple[type[_PassOfThread], tuple[()]]:
        """Leave the pass out of copies and pickles."""
        return _PassOfThread, ()


def _backward_pass() -> int:
    """Return the number of this thread's backward pass, which activation checkpointing uses too."""
    if torch.compiler.is_compiling():
        return _FORWARD
    return torch._C._current_graph_task_id()
