"""Bring the rows of different adapters into one form, so that a layer can compute them together.

Adapters of a batch may differ in ranks, k, b and adapted modules. A frame has the largest rank and
k among them, and g, the greatest common divisor of their vector lengths. A vector of length b is
treated as b/g consecutive vectors of length g. Rows that an adapter lacks have weight zero.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbfmt.module import Module
from vbfmt.torch.pool.layout import Layout

_MOST_PADDING = 4
"""A frame may be at most this many times as large as the smallest adapter in it."""

_KEPT_CUTS = 4


@dataclass(frozen=True)
class Span:
    """The positions of one module's rows in a frame.

    Attributes:
        rank: the module's rank in the frame. Some adapters may have a smaller one.
        a_tiles, b_tiles: number of vectors of length g along in_features and out_features.
        start: position of A's first row.
    """

    rank: int
    a_tiles: int
    b_tiles: int
    start: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rank, a_tiles, b_tiles)."""
        return self.rank, self.a_tiles, self.b_tiles

    @property
    def middle(self) -> int:
        """Position of B's first row."""
        return self.start + self.rank * self.a_tiles

    @property
    def stop(self) -> int:
        """Position after B's last row."""
        return self.middle + self.rank * self.b_tiles


class Bags(NamedTuple):
    """How to sum a module's flattened rows: where each sum begins, int32, and what belongs to it.

    Attributes:
        a, b: for sums over the k vectors of one row of A or B: multiples of k.
        inputs: for all vectors of one tile of the input: multiples of rank · k, and the end.
        outputs: for sums over all vectors of one tile of the output: multiples of rank · k.
        components: float32, (a_tiles · rank · k, rank · k): 1 where a dot product belongs to the
            component of a vector of B.
    """

    a: Tensor
    b: Tensor
    inputs: Tensor
    outputs: Tensor
    components: Tensor


class Cut(NamedTuple):
    """How to reorder the rows of several samples and split them by module.

    Attributes:
        order: int64, which of the samples' rows to take. Before it, rows are ordered by sample.
            After it, they are ordered by module, then by block, then by sample. The blocks are A's
            rows by tile and then by component (only on a CPU), A's rows, and B's.
        sizes: number of elements of each block, module by module.
        bags: offsets of each module, by name.
    """

    order: Tensor
    sizes: Sequence[int]
    bags: Mapping[str, Bags]


class Frame:
    """The common form of several layouts.

    A's rows are ordered by component, then by tile. B's are ordered by tile, then by component, so
    that the rows that are summed for one tile of the output are consecutive.

    Attributes:
        length: g, the vector length.
        tiled: whether a cut also has A's rows by tile, which are read only on a CPU.
        k: number of vectors that a row selects.
        spans: positions of each module's rows, by name.
        rows: n, the number of rows.
    """

    def __init__(
        self,
        layouts: Iterable[Layout],
        device: torch.device,
        *,
        minimum: Sequence[int] = (0, 0, 0),
        modules: Iterable[Module] = (),
    ) -> None:
        """Create the frame of `layouts`.

        Args:
            device: device of the adapters.
            minimum: smallest rank, smallest k, and a number that g must divide (0 for any).
            modules: modules that the frame must have besides those of `layouts`.
        """
        layouts = list(layouts)
        rank, k, length = minimum
        self.k = max([k, *(layout.k for layout in layouts)])
        self.length = gcd(length, *(layout.b for layout in layouts))
        ranks: dict[str, int] = {}
        sizes: dict[str, Module] = {}
        for module in [*modules, *(each for layout in layouts for each in layout.modules)]:
            ranks[module.name] = max(rank, module.rank, ranks.get(module.name, 0))
            sizes[module.name] = module
        self.spans: dict[str, Span] = {}
        self.rows = 0
        for name, module in sizes.items():
            tiles = module.in_features // self.length, module.out_features // self.length
            self.spans[name] = Span(ranks[name], *tiles, self.rows)
            self.rows = self.spans[name].stop
        self.tiled = device.type == "cpu"
        self._device = device
        self._maps: dict[Layout | None, tuple[Tensor, Tensor]] = {}
        self._cuts: OrderedDict[int, Cut] = OrderedDict()

    @property
    def cost(self) -> int:
        """Number of vectors that are summed for one sample."""
        return self.rows * self.k

    def maps(self, layouts: Sequence[Layout]) -> tuple[Tensor, Tensor]:
        """Return where the frame's rows come from, for each layout and, last, for no adapter.

        Returns:
            (layouts + 1, n) int64, the adapter's row for each row of the frame, or −1; and (layouts
                + 1, n) int32, the number of the piece of length g that the frame's row takes of the
                adapter's vectors.
        """
        found = [self._map(layout) for layout in (*layouts, None)]
        return torch.stack([rows for rows, _ in found]), torch.stack([part for _, part in found])

    def cut(self, samples: int) -> Cut:
        """Return how to reorder and split the rows of `samples` samples."""
        if samples not in self._cuts:
            self._cuts[samples] = self._new_cut(samples)
            if len(self._cuts) > _KEPT_CUTS:
                self._cuts.popitem(last=False)
        self._cuts.move_to_end(samples)
        return self._cuts[samples]

    def _map(self, layout: Layout | None) -> tuple[Tensor, Tensor]:
        if layout not in self._maps:
            rows, parts = _sources(self, layout)
            self._maps[layout] = (
                torch.from_numpy(rows).to(self._device),
                torch.from_numpy(parts).to(self._device),
            )
        return self._maps[layout]

    def _new_cut(self, samples: int) -> Cut:
        rows = np.arange(samples * self.rows).reshape(samples, self.rows)
        blocks = []
        for span in self.spans.values():
            a, b = rows[:, span.start : span.middle], rows[:, span.middle : span.stop]
            by_tile = a.reshape(samples, span.rank, span.a_tiles).swapaxes(1, 2)
            blocks += [each.reshape(-1) for each in ((by_tile, a, b) if self.tiled else (a, b))]
        order = torch.from_numpy(np.concatenate(blocks)).to(self._device)
        sizes = [len(block) * self.k for block in blocks]
        shapes = {span.shape for span in self.spans.values()}
        bags = {shape: self._bags(samples, *shape) for shape in shapes}
        return Cut(order, sizes, {name: bags[span.shape] for name, span in self.spans.items()})

    def _bags(self, samples: int, rank: int, a_tiles: int, b_tiles: int) -> Bags:
        def multiples(count: int, step: int) -> Tensor:
            stop = samples * count * step + 1
            return torch.arange(0, stop, step, dtype=torch.int32, device=self._device)

        component = torch.arange(rank).repeat_interleave(self.k)
        components = component.repeat(a_tiles)[:, None] == component
        return Bags(
            multiples(rank * a_tiles, self.k)[:-1],
            multiples(rank * b_tiles, self.k)[:-1],
            multiples(a_tiles, rank * self.k),
            multiples(b_tiles, rank * self.k)[:-1],
            components.float().to(self._device),
        )


def grouped(layouts: Iterable[Layout], device: torch.device) -> list[list[Layout]]:
    """Divide layouts into groups; each group gets one frame.

    All layouts share a frame if that costs little. Otherwise those with the same b share one, or
    each has its own. Without groups, one adapter with a large rank or a small b would make every
    sample of its batch as costly.
    """
    different = sorted(set(layouts), key=lambda layout: (layout.b, id(layout)))
    if _fits(different, device):
        return [different] if different else []
    lengths = sorted({layout.b for layout in different})
    groups = []
    for b in lengths:
        same = [layout for layout in different if layout.b == b]
        groups += [same] if _fits(same, device) else [[layout] for layout in same]
    return groups


def _fits(layouts: Sequence[Layout], device: torch.device) -> bool:
    own = min((layout.N * layout.k for layout in layouts), default=0)
    return len(layouts) < 2 or Frame(layouts, device).cost <= _MOST_PADDING * own


def _sources(frame: Frame, layout: Layout | None) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    rows = np.full(frame.rows, -1, dtype=np.int64)
    parts = np.zeros(frame.rows, dtype=np.int32)
    if layout is None:
        return rows, parts
    factor = layout.b // frame.length
    first = 0
    for module in layout.modules:
        span = frame.spans[module.name]
        for start, tiles, by_tile in (
            (span.start, span.a_tiles, False),
            (span.middle, span.b_tiles, True),
        ):
            tile, component = np.arange(tiles), np.arange(module.rank)
            own = first + component[:, None] * (tiles // factor) + tile // factor
            part = np.broadcast_to(tile % factor, own.shape)
            stop = start + span.rank * tiles
            if by_tile:
                rows[start:stop].reshape(tiles, span.rank)[:, : module.rank] = own.T
                parts[start:stop].reshape(tiles, span.rank)[:, : module.rank] = part.T
            else:
                rows[start:stop].reshape(span.rank, tiles)[: module.rank] = own
                parts[start:stop].reshape(span.rank, tiles)[: module.rank] = part
            first += module.rank * tiles // factor
    return rows, parts
