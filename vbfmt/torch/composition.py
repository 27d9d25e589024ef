"""Composing sub-vectors from the bank (Eq. 3.3): for all layers together, once per forward pass."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
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

    Every thread has passes of its own, so that one may evaluate while another trains. Passes that
    `torch.compile` has traced need none of this: their rows are in the graph. Only where it breaks
    a model's graph do they wait between its parts, and then for all threads alike.

    Activation checkpointing runs parts of the model again during the backward pass, after `end`.
    Where the first run recorded a graph (``use_reentrant=False``), the second must see the same
    tensors, so they are kept until the thread's next pass with gradients. Where it did not
    (``use_reentrant=True``), the second run is differentiated by itself, and the layer composes
    its own rows.
    """

    def __init__(self, bank: VectorBank, topk: int) -> None:
        self.bank = (bank,)  # a tuple, so that no module takes it for a part of itself
        self.topk = topk
        self.layers: list[Admixture] = []
        self._forget_passes()

    def begin(self) -> None:
        """Compose the sub-vectors of all layers."""
        recording = torch.is_grad_enabled()
        self._put_current(None)
        # A pass without gradients leaves alone what a backward pass may need.
        if recording and not torch.compiler.is_compiling():
            self._recorded.pop(threading.get_ident(), None)
        rows: dict[int, Tensor] = {}
        by_device: dict[torch.device, list[int]] = {}
        for position, layer in enumerate(self.layers):
            by_device.setdefault(layer.logits.device, []).append(position)
        for device, positions in by_device.items():
            logits = [self.layers[position].logits for position in positions]
            composed = compose(self.bank[0].weight.to(device), logits, self.topk)
            parts = torch.split(composed, [len(block) for block in logits])
            rows.update(zip(positions, parts, strict=True))
        self._put_current(Pass(rows, recording, self._versions()))

    def end(self) -> None:
        """The pass is over."""
        current = self._current()
        self._put_current(None)
        # A compiler sees to checkpointing itself.
        if current is not None and current.recording and not torch.compiler.is_compiling():
            self._keep(current)

    def drop(self) -> None:
        """Forget the pass that this thread is in: a KeyboardInterrupt leaves one without an end."""
        self._put_current(None)

    def rows_of(self, position: int) -> Tensor | None:
        """A layer's sub-vectors (n, b), or None if it is to compose them itself."""
        again = in_backward()
        found = self._current()
        if found is not None and not again and self._is_stale(found, position):
            return None
        if found is None and again:
            found = self._pass_to_run_again(position)
        if found is None or (again and position in found.unrecorded):
            return None
        if found.recording and not again and not torch.is_grad_enabled():
            found.unrecorded.add(position)
        return found.rows[position]

    def _versions(self) -> list[int]:
        """How often the logits of every layer, and at last the bank, were written to.

        Empty while compiling, as rows and layers are in one graph then; and for tensors of
        inference mode, which do not count that.
        """
        if torch.compiler.is_compiling():
            return []
        written = [*(layer.logits for layer in self.layers), self.bank[0].weight]
        if any(tensor.is_inference() for tensor in written):
            return []
        return [tensor._version for tensor in written]

    def _is_stale(self, found: Pass, position: int) -> bool:
        """Whether a pass is one that never came to its end, and these are not its rows any more."""
        versions = found.versions
        if not versions:
            return False
        if not found.recording and torch.is_grad_enabled():
            return True
        now = self.layers[position].logits._version
        return now != versions[position] or self.bank[0].weight._version != versions[-1]

    def _forget_passes(self) -> None:
        self._mine = _PassOfThread()
        self._traced: Pass | None = None
        self._recorded: dict[int, Pass] = {}  # by thread, the latest at the end

    def _current(self) -> Pass | None:
        if torch.compiler.is_compiling():  # it cannot trace what is a thread's own
            return self._traced
        return self._mine.current or self._traced

    def _put_current(self, current: Pass | None) -> None:
        if torch.compiler.is_compiling():
            self._traced = current
        else:
            self._mine.current, self._traced = current, None

    def _pass_to_run_again(self, position: int) -> Pass | None:
        """The last pass with gradients, of any thread: that of a backward pass may be another
        than its forward pass was in, and on a GPU always is. None if a layer may have run without
        gradients: then the second run is differentiated by itself."""
        passes = list(self._recorded.values())
        if any(position in known.unrecorded for known in passes):
            return None
        return passes[-1] if passes else None

    def _keep(self, recorded: Pass) -> None:
        """As this thread's last pass with gradients, and the last of all."""
        living = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
        for known in list(self._recorded):
            if known not in living:
                self._recorded.pop(known, None)
        self._recorded[threading.get_ident()] = recorded

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles of a model do not hold what belongs to one pass."""
        passes = ("_mine", "_traced", "_recorded")
        return {name: value for name, value in self.__dict__.items() if name not in passes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_passes()


@dataclass(eq=False)
class Pass:
    """What was composed for one pass.

    Attributes:
        rows: a layer's position → its sub-vectors (n, b).
        recording: whether with gradients.
        versions: of every layer's logits and of the bank, when the rows were composed.
        unrecorded: positions of layers that ran without gradients all the same.
    """

    rows: dict[int, Tensor]
    recording: bool
    versions: list[int]
    unrecorded: set[int] = field(default_factory=set)


class _PassOfThread(threading.local):
    """The pass that this thread is in."""

    current: Pass | None = None


def in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread (as checkpointing itself asks)."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1
