"""From the adapters of a batch to what every layer reads."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vbfmt.errors import ModelError
from vbfmt.module import Module
from vbfmt.torch.pool.frame import Frame, Span, grouped
from vbfmt.torch.pool.layout import Layout
from vbfmt.torch.pool.own_tensors import Own, OwnTensors, staged
from vbfmt.torch.pool.residents import Resident, Residents
from vbfmt.torch.pool.update import Rows

_KEPT_FRAMES = 16
_LARGEST_INDEX = 2**31 - 1


class Part(NamedTuple):
    """What a batch changes in one layer.

    Attributes:
        rows: by group of samples; one group, if their adapters are alike.
        own: weights and biases of samples' own.
    """

    rows: tuple[Rows, ...]
    own: Own | None


@dataclass(eq=False)
class Batch:
    """What a running batch reads.

    Attributes:
        samples: how many there are.
        copies: how many rows of the model's input belong to each, one after another (beams).
        parts: what changes in every layer, by its place in the pool's list; None for nothing.
    """

    samples: int
    copies: int
    parts: Sequence[Part | None]


class Staged(NamedTuple):
    """What was gathered for a batch, for the next one with the same adapters.

    Attributes:
        residents: of its samples.
        memory: all banks, that the indices are of.
        parts: as a batch has them.
    """

    residents: list[Resident | None]
    memory: Tensor
    parts: Sequence[Part | None]


class Staging:
    """Gathers the rows of a batch's adapters, once for all layers.

    Args:
        modules: all that adapters may change, in the order of a batch's `parts`.
        form: rank, k and vector length of every batch; None for those that its adapters need.
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
        self._places = {name: place for place, name in enumerate(modules)}
        self._device = device
        self._form = form
        self._known: dict[str, Module] = {}
        self._frames: OrderedDict[frozenset[Layout], list[tuple[Frame, set[Layout]]]]
        self._frames = OrderedDict()
        self._last: Staged | None = None

    def know(self, layout: Layout) -> None:
        """Hear of an adapter's modules: a fixed form has those of all adapters."""
        new = {each.name: each for each in layout.modules if each.name not in self._known}
        if new and self._form is not None:
            with self._residents.lock:
                self._known.update(new)
                self._frames.clear()

    def batch(self, residents: list[Resident | None], copies: int) -> Batch:
        """What layers read for these adapters of a batch's samples, which must be pinned."""
        with self._residents.lock, torch.inference_mode(False), torch.no_grad():
            memory, last = self._residents.banks.memory, self._last
            if last is None or not self._is_good(last, residents, memory):
                self._last = last = Staged(list(residents), memory, self._parts(residents))
            return Batch(len(residents), copies, last.parts)

    def _is_good(
        self, staged: Staged, residents: Sequence[Resident | None], memory: Tensor
    ) -> bool:
        """Whether the last batch's rows are those of this one."""
        same = staged.residents == residents and staged.memory is memory
        return same and self._residents.same(residents)

    def _bank(self, length: int) -> Tensor:
        """The memory of all banks as vectors of that length."""
        memory = self._residents.banks.memory
        vectors = memory[: memory.numel() // length * length].view(-1, length)
        dynamo = sys.modules.get("torch._dynamo")
        if dynamo is not None:  # it grows, which is no reason to compile anything again
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
                samples = torch.tensor(members, device=self._device)
            for name, found in self._rows(frame, chosen, samples).items():
                rows.setdefault(name, []).append(found)
        own = self._own([None if each is None else each.own for each in residents])
        parts: list[Part | None] = [None] * len(self._modules)
        for name in {**rows, **own}:
            parts[self._places[name]] = Part(tuple(rows.get(name, ())), own.get(name))
        return parts

    def _own(self, owners: Sequence[OwnTensors | None]) -> dict[str, Own]:
        names = dict.fromkeys(name for own in owners if own for name in (*own.weights, *own.biases))
        found = {name: staged(name, self._modules[name], owners, self._device) for name in names}
        return {name: own for name, own in found.items() if own is not None}

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
        frame = Frame([], self._device, least=self._form, modules=self._known.values())
        return [(frame, set(layouts))]

    def _rows(
        self, frame: Frame, residents: Sequence[Resident | None], samples: Tensor | None
    ) -> dict[str, Rows]:
        """The rows of every module for some samples, in the frame's form."""
        n, k = len(residents), frame.k
        indices, weights = self._gathered(frame, residents)
        most = max(n * span.rank * max(span.a_tiles, span.b_tiles) for span in frame.spans.values())
        bank = self._bank(frame.length)
        bags = torch.arange(0, most * k, k, dtype=torch.int32, device=self._device)
        sums: dict[int, Tensor] = {}
        found = {}
        for name, span in frame.spans.items():
            step = span.rank * k
            if step not in sums or len(sums[step]) < n * span.b_tiles:
                sums[step] = torch.arange(
                    0, n * span.b_tiles * step, step, dtype=torch.int32, device=self._device
                )
            found[name] = _rows_of(span, n, k, samples, bank, indices, weights, bags, sums[step])
        return found

    def _gathered(
        self, frame: Frame, residents: Sequence[Resident | None]
    ) -> tuple[Tensor, Tensor]:
        """Indices and weights of all samples, flat, in the frame's order."""
        elements = self._residents.banks.memory.numel() // frame.length
        if elements > _LARGEST_INDEX:
            raise ModelError("the banks are too large together", found=f"{elements} vectors")
        table_indices, table_weights, starts = self._table(frame, residents)
        last = len(table_indices) - 1
        rows, parts = [], []
        for resident in residents:
            if resident is None:
                rows.append(torch.full((frame.rows,), last, device=self._device))
                parts.append(torch.zeros(frame.rows, dtype=torch.int32, device=self._device))
                continue
            row, part = frame.places(resident.layout)
            rows.append(torch.where(row < 0, last, row + starts[resident]))
            parts.append(part)
        order = frame.order(len(residents))
        where = torch.cat(rows).index_select(0, order)
        indices = table_indices.index_select(0, where)
        if any(each and each.layout.b != frame.length for each in residents):
            indices = indices + torch.cat(parts).index_select(0, order)[:, None]
        return indices.view(-1), table_weights.index_select(0, where).view(-1)

    def _table(
        self, frame: Frame, residents: Sequence[Resident | None]
    ) -> tuple[Tensor, Tensor, dict[Resident, int]]:
        """All rows of these adapters and at last one of weight zero, (rows, k) each: indices into
        the memory of all banks, and weights; and where each adapter's rows begin."""
        by_layout: dict[Layout, dict[Resident, None]] = {}
        for resident in residents:
            if resident is not None:
                by_layout.setdefault(resident.layout, {})[resident] = None
        indices, weights, starts, start = [], [], {}, 0
        for layout, members in by_layout.items():
            views = [
                view
                for each in members
                for view in self._residents.pages.read(each.runs, layout.nbytes)
            ]
            found, shares = layout.unpack(torch.cat(views).view(len(members), layout.nbytes))
            first = [each.bank.start // frame.length for each in members]
            firsts = torch.tensor(first, dtype=torch.int32, device=self._device)
            found = found * (layout.b // frame.length) + firsts[:, None, None]
            more = (0, frame.k - layout.k)
            indices.append(nn.functional.pad(found, more).view(-1, frame.k))
            weights.append(nn.functional.pad(shares, more).view(-1, frame.k))
            for each in members:
                starts[each] = start
                start += layout.N
        zero = torch.zeros(1, frame.k, device=self._device)
        return torch.cat([*indices, zero.int()]), torch.cat([*weights, zero]), starts


def _rows_of(
    span: Span,
    n: int,
    k: int,
    samples: Tensor | None,
    bank: Tensor,
    indices: Tensor,
    weights: Tensor,
    bags: Tensor,
    sums: Tensor,
) -> Rows:
    a = slice(n * span.start * k, n * span.middle * k)
    b = slice(n * span.middle * k, n * span.stop * k)
    return Rows(
        samples,
        bank,
        indices[a],
        indices[b],
        weights[a],
        weights[b],
        bags[: n * span.rank * span.a_tiles],
        bags[: n * span.rank * span.b_tiles],
        sums[: n * span.b_tiles],
        span.rank,
    )
