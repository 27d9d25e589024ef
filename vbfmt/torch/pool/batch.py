"""Prepare the tensors that layers read for the adapters of a batch."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vbfmt.errors import ModelError
from vbfmt.module import Module
from vbfmt.torch.pool.frame import Frame, grouped
from vbfmt.torch.pool.gather import gathered, to_device
from vbfmt.torch.pool.layout import Layout
from vbfmt.torch.pool.own_tensors import Own, OwnTensors, staged
from vbfmt.torch.pool.residents import Resident, Residents
from vbfmt.torch.pool.tiles import Tiles
from vbfmt.torch.pool.update import Pieces, Rows

_KEPT_FRAMES = 16
_LARGEST_INDEX = 2**31 - 1


class Part(NamedTuple):
    """What a batch's adapters change in one layer.

    Attributes:
        rows: the rows of each group of samples. Samples whose adapters share a frame are a group.
        own: the samples' own weights and biases.
    """

    rows: tuple[Rows, ...]
    own: Own | None


@dataclass(eq=False)
class Batch:
    """The tensors of a running batch.

    Attributes:
        samples: number of samples.
        copies: number of consecutive inputs per sample, as in beam search.
        parts: the changes in each layer, by the layer's index in the pool; None for no change.
        positions: total number of positions of all samples in the last input with the shape
            (samples, positions, …, features); 0 if there was none. Compiled layers do not set it.
        used: whether the model has called a layer with the batch. Compiled layers do not set it.
        opener: the id of the frame that contains the batch's block.
        ended: whether its block has ended.
    """

    samples: int
    copies: int
    parts: Sequence[Part | None]
    positions: int = 0
    used: bool = False
    opener: int = 0
    ended: bool = False

    def see(self, x: object, output: object) -> bool:
        """Record that a layer was called, and the number of positions in its input.

        A later layer may get samples and positions as one dimension.

        Returns:
            Whether the layer maps (samples, positions, …) to the same, as most do.
        """
        self.used = True
        if not isinstance(x, Tensor) or x.is_nested:
            return False
        shape = x.shape
        if len(shape) == 3 and shape[0] == self.samples:
            self.positions = shape[0] * shape[1]
            return isinstance(output, Tensor) and output.shape[:-1] == shape[:2]
        if len(shape) > 2:
            mine = shape[0] in (self.samples, self.samples * self.copies)
            self.positions = prod(shape[:-1]) if mine else 0
        return False


class Staged(NamedTuple):
    """The tensors of a batch, kept for a next batch with the same adapters.

    Attributes:
        residents: the adapters of its samples.
        memory: `Banks.memory`, to which the indices refer.
        parts: as in `Batch`.
        base: index of a part with own tensors → the state of the base's tensors that it depends on.
    """

    residents: list[Resident | None]
    memory: Tensor
    parts: Sequence[Part | None]
    base: Mapping[int, object]


class Staging:
    """Gathers the rows of a batch's adapters, for all layers at once.

    Args:
        modules: all modules that adapters may change, in the order of `Batch.parts`.
        form: rank, k and vector length of every batch; None to use what its adapters need.
    """

    def __init__(
        self,
        residents: Residents,
        modules: Mapping[str, nn.Module],
        device: torch.device,
        form: tuple[int, int, int] | None,
    ) -> None:
        self._residents = residents
        self._modules = modules
        self._indices = {name: index for index, name in enumerate(modules)}
        self._layers = [*modules.values()]
        self._device = device
        self._form = form
        self._known: dict[str, Module] = {}
        self._frames: OrderedDict[frozenset[Layout], list[tuple[Frame, set[Layout]]]]
        self._frames = OrderedDict()
        self._last: Staged | None = None

    def register(self, layout: Layout) -> None:
        """Register the modules of an adapter. With a fixed form, every frame has all adapters'
        modules."""
        new = {each.name: each for each in layout.modules if each.name not in self._known}
        if new and self._form is not None:
            with self._residents.lock:
                self._known.update(new)
                self._frames.clear()

    def batch(self, residents: list[Resident | None], copies: int) -> Batch:
        """Return the batch for these adapters, one per sample. They must be pinned."""
        with self._residents.lock, torch.inference_mode(False), torch.no_grad():
            memory, last = self._residents.banks.memory, self._last
            if last is None or not self._can_reuse(last, residents, memory):
                parts = self._parts(residents)
                own = [index for index, part in enumerate(parts) if part and part.own]
                base = {index: self._state_of(index) for index in own}
                self._last = last = Staged(list(residents), memory, parts, base)
            return Batch(len(residents), copies, last.parts)

    def _can_reuse(
        self, staged: Staged, residents: Sequence[Resident | None], memory: Tensor
    ) -> bool:
        """Return whether the last batch's tensors can be used for this batch."""
        if staged.residents != residents or staged.memory is not memory:
            return False
        base = all(self._state_of(index) == state for index, state in staged.base.items())
        return base and self._residents.are_resident(residents)

    def _state_of(self, index: int) -> object:
        """Return what changes if a layer's dtype or bias does."""
        layer = self._layers[index]
        weight, bias = cast(Tensor, layer.weight), cast("Tensor | None", layer.bias)
        if bias is None:
            return weight.dtype
        version = None if bias.is_inference() else bias._version
        return weight.dtype, bias.data_ptr(), version

    def _bank(self, length: int) -> Tensor:
        """Return the memory of all banks as vectors of this length."""
        memory = self._residents.banks.memory
        vectors = memory[: memory.numel() // length * length].view(-1, length)
        dynamo = sys.modules.get("torch._dynamo")
        if dynamo is not None:  # the memory grows, and compiled code must stay valid
            dynamo.maybe_mark_dynamic(vectors, 0)
        return vectors

    def _parts(self, residents: Sequence[Resident | None]) -> Sequence[Part | None]:
        rows: dict[str, list[Rows]] = {}
        groups = self._groups(residents)
        for frame, layouts in groups:
            chosen, samples = residents, None
            if len(groups) > 1:
                members = [
                    at for at, each in enumerate(residents) if each and each.layout in layouts
                ]
                chosen = [residents[at] for at in members]
                (samples,) = to_device(self._device, members)
            for name, found in self._rows(frame, chosen, samples).items():
                rows.setdefault(name, []).append(found)
        own = self._own([None if each is None else each.own for each in residents])
        parts: list[Part | None] = [None] * len(self._modules)
        for name in {**rows, **own}:
            parts[self._indices[name]] = Part(tuple(rows.get(name, ())), own.get(name))
        return parts

    def _own(self, owners: Sequence[OwnTensors | None]) -> dict[str, Own]:
        names = dict.fromkeys(name for own in owners if own for name in (*own.weights, *own.biases))
        return {name: staged(name, self._modules[name], owners, self._device) for name in names}

    def _groups(self, residents: Sequence[Resident | None]) -> list[tuple[Frame, set[Layout]]]:
        layouts = frozenset(each.layout for each in residents if each is not None)
        if not layouts:
            return []
        if layouts not in self._frames:
            self._frames[layouts] = self._new_frames(layouts)
            if len(self._frames) > _KEPT_FRAMES:
                self._frames.popitem(last=False)
        self._frames.move_to_end(layouts)
        return self._frames[layouts]

    def _new_frames(self, layouts: frozenset[Layout]) -> list[tuple[Frame, set[Layout]]]:
        if self._form is None:
            groups = grouped(layouts, self._device)
            return [(Frame(group, self._device), set(group)) for group in groups]
        frame = Frame([], self._device, minimum=self._form, modules=self._known.values())
        return [(frame, set(layouts))]

    def _rows(
        self, frame: Frame, residents: Sequence[Resident | None], samples: Tensor | None
    ) -> dict[str, Rows]:
        """Return the rows of every module for these samples, in a frame's form."""
        self._require_indices_fit(frame)
        indices, weights = gathered(frame, residents, self._residents.pages, self._device)
        bank, cut = self._bank(frame.length), frame.cut(len(residents))
        index_parts = iter(indices.split_with_sizes(cut.sizes))
        weight_parts = iter(weights.split_with_sizes(cut.sizes))
        found, start = {}, 0
        for name, span in frame.spans.items():
            bags = cut.bags[name]
            tiles = None
            if frame.tiled:
                by_tile = next(index_parts)
                tiles = Tiles.of(bank, by_tile, next(weight_parts), bags)
                start += len(by_tile)
            a, b = next(index_parts), next(index_parts)
            a_weights, b_weights = next(weight_parts), next(weight_parts)
            middle, stop = start + len(a), start + len(a) + len(b)
            pieces = Pieces(a, b, a_weights, b_weights, bags.a, bags.b, bags.outputs, tiles)
            found[name] = Rows(
                samples, bank, indices, weights, start, middle, stop, span.rank, frame.k, pieces
            )
            start = stop
        return found

    def _require_indices_fit(self, frame: Frame) -> None:
        vectors = self._residents.banks.memory.numel() // frame.length
        if vectors > _LARGEST_INDEX:
            raise ModelError("the banks are too large together", found=f"{vectors} vectors")
