"""One form for the rows of different adapters, so that a layer computes them together.

Adapters of a batch may differ in ranks, k, b and adapted modules. In a frame they all have the
largest rank and k and the smallest common vector length; what an adapter lacks has the weight zero.
A vector of length b is b/g vectors of length g, one after another in the same memory.
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
"""Adapters share a frame if that makes them at most so many times as large."""

_KEPT_CUTS = 4


@dataclass(frozen=True)
class Span:
    """Where the rows of a module are in a frame, and how many there are.

    Attributes:
        rank: of the frame's, not of an adapter's.
        a_tiles, b_tiles: vectors of length g along in_features and out_features.
        start: where A's rows begin.
    """

    rank: int
    a_tiles: int
    b_tiles: int
    start: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rank, and the tiles of A and B."""
        return self.rank, self.a_tiles, self.b_tiles

    @property
    def middle(self) -> int:
        """Where A's rows end and B's begin."""
        return self.start + self.rank * self.a_tiles

    @property
    def stop(self) -> int:
        """Where B's rows end."""
        return self.middle + self.rank * self.b_tiles


class Bags(NamedTuple):
    """Where the sums of a module begin in its rows; all int32.

    Attributes:
        a, b: sums of the k vectors of a row: multiples of k.
        outputs: sums of all that belongs to one part of the output: multiples of rank · k.
    """

    a: Tensor
    b: Tensor
    outputs: Tensor


class Cut(NamedTuple):
    """How the rows of so many samples are put in order, and cut into those of each module.

    Attributes:
        order: from sample by sample, in each module by module, to the other way round: A's and
            B's rows of every module together for all samples. (samples · n,) int64.
        sizes: how many elements of the flat rows A and B of each module have, one after another.
        bags: module name → where its sums begin.
    """

    order: Tensor
    sizes: Sequence[int]
    bags: Mapping[str, Bags]


class Frame:
    """The common form of some layouts.

    A's rows stand by component, then by tile; B's by tile, then by component, as those that are
    added up at one place of the output.

    Attributes:
        length: g, the length of a vector.
        k: number of vectors that a row selects.
        spans: module name → its rows.
        rows: number of all rows, n.
    """

    def __init__(
        self,
        layouts: Iterable[Layout],
        device: torch.device,
        *,
        least: Sequence[int] = (0, 0, 0),
        modules: Iterable[Module] = (),
    ) -> None:
        """Create the frame of `layouts`.

        Args:
            device: device of the adapters.
            least: minimum rank, minimum k and maximum vector length.
            modules: other modules that the frame must have.
        """
        layouts = list(layouts)
        rank, k, length = least
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
        self._device = device
        self._maps: dict[Layout | None, tuple[Tensor, Tensor]] = {}
        self._cuts: OrderedDict[int, Cut] = OrderedDict()

    @property
    def cost(self) -> int:
        """Number of vectors that are added up for one sample."""
        return self.rows * self.k

    def maps(self, layouts: Sequence[Layout]) -> tuple[Tensor, Tensor]:
        """For every row of the frame, by layout: which row of the adapter it is of, −1 if of none,
        (layouts + 1, n) int64; and which part of the adapter's vectors it has, the same in int32.
        The last of each is that of no adapter."""
        found = [self._map(layout) for layout in (*layouts, None)]
        return torch.stack([rows for rows, _ in found]), torch.stack([part for _, part in found])

    def cut(self, samples: int) -> Cut:
        """Return how the rows of `samples` samples are cut."""
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
        blocks = [
            rows[:, one:other].reshape(-1)
            for span in self.spans.values()
            for one, other in ((span.start, span.middle), (span.middle, span.stop))
        ]
        order = torch.from_numpy(np.concatenate(blocks)).to(self._device)
        sizes = [len(block) * self.k for block in blocks]
        shapes = {span.shape for span in self.spans.values()}
        bags = {shape: self._bags(samples, *shape) for shape in shapes}
        return Cut(order, sizes, {name: bags[span.shape] for name, span in self.spans.items()})

    def _bags(self, samples: int, rank: int, a_tiles: int, b_tiles: int) -> Bags:
        def multiples(count: int, step: int) -> Tensor:
            stop = samples * count * step
            return torch.arange(0, stop, step, dtype=torch.int32, device=self._device)

        return Bags(
            multiples(rank * a_tiles, self.k),
            multiples(rank * b_tiles, self.k),
            multiples(b_tiles, rank * self.k),
        )


def grouped(layouts: Iterable[Layout], device: torch.device) -> list[list[Layout]]:
    """Return groups of layouts that share a frame: all if it costs little, else by b, or single.

    Without that, one adapter of a large rank or a small b would cost every sample of its batch.
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
