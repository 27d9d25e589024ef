"""The content of a picture: an adapter and the names of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vbfmt.adapter import Adapter
from vbfmt.analysis.module_names import OUTSIDE, Position, layers, positions, shared
from vbfmt.analysis.statistics import bank_norms, drawn_at_random, rows_by_module, usage
from vbfmt.errors import ContentError, printable

_DRAWS = 8


@dataclass(frozen=True)
class Scene:
    """An adapter to be drawn.

    Attributes:
        adapter: the adapter.
        name: name of the adapter, usually its file.
        before: an earlier state of the same adapter, for the selection map.

    Raises:
        ContentError: `before` has other modules, or another h, k or N.
    """

    adapter: Adapter
    name: str
    before: Adapter | None = None

    def __post_init__(self) -> None:
        if self.before is None:
            return
        found, expected = _shape(self.before), _shape(self.adapter)
        for what in expected:
            if found[what] != expected[what]:
                raise ContentError(
                    "the earlier adapter has another shape",
                    part=what,
                    found=found[what],
                    expected=expected[what],
                    advice="`before` needs the same model with the same h, k and ranks",
                )
        for one, other in zip(self.before, self.adapter, strict=True):
            if one != other:
                raise ContentError(
                    "the earlier adapter belongs to another model",
                    part=f"module {one.name}",
                    found=f"{one.in_features} → {one.out_features}, rank {one.rank}",
                    expected=f"{other.name}, {other.in_features} → {other.out_features}, "
                    f"rank {other.rank}",
                )

    @cached_property
    def usage(self) -> NDArray[np.int64]:
        """How often each vector is selected: (h,) int64."""
        return usage(self.adapter)

    @cached_property
    def norms(self) -> NDArray[np.float64]:
        """The norms of the bank's vectors: (h,) float64."""
        return bank_norms(self.adapter)

    @cached_property
    def by_norm(self) -> NDArray[np.intp]:
        """The vectors by descending norm, as in the paper's Figs. 6 and 7: (h,) intp."""
        return np.argsort(-self.norms, kind="stable")

    @cached_property
    def positions(self) -> dict[str, Position]:
        """Name of a module → its layer and kind."""
        return positions(module.name for module in self.adapter)

    @cached_property
    def layers(self) -> NDArray[np.float64]:
        """The layer of each module, infinity if it is outside the layers: (M,) float64."""
        return layers(self.positions)

    @cached_property
    def row_groups(self) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The module of each row, (N,) intp, and whether the row belongs to B, (N,) bool."""
        return rows_by_module(self.adapter)

    @cached_property
    def row_order(self) -> NDArray[np.intp]:
        """The rows from the first layer to the last: (N,) intp."""
        order = np.argsort(self.layers, kind="stable")
        counts = np.bincount(self.row_groups[0], minlength=len(order))
        starts = (np.cumsum(counts) - counts)[order]
        counts = counts[order]
        # Each row moves by as many positions as the first row of its module.
        moved = np.repeat(starts - (np.cumsum(counts) - counts), counts)
        found: NDArray[np.intp] = np.arange(len(moved), dtype=np.intp) + moved
        return found

    @cached_property
    def at_random(self) -> tuple[NDArray[np.int64], ...]:
        """Several random selections, made from fixed seeds: (N, k) int64 each."""
        return tuple(drawn_at_random(self.adapter, seed) for seed in range(_DRAWS))

    def heading(self) -> str:
        """Return a line that describes the adapter."""
        ranks = sorted({module.rank for module in self.adapter})
        a = self.adapter
        base = f"{shortened(a.base_model, 60)} · " if a.base_model else ""
        modules = "1 module" if len(a) == 1 else f"{len(a)} modules"
        vectors = "1 vector" if a.h == 1 else f"{a.h} vectors"
        return (
            f"{base}{modules} · h = {vectors} of b = {a.b} · k = {a.k} · "
            f"r = {', '.join(map(str, ranks))} · N = {a.N:,} sub-vectors"
        )


def layer_name(layer: int | None) -> str:
    """Return the name of a layer, for labels."""
    return OUTSIDE if layer is None else f"layer {layer}"


def shortened(text: str, most: int) -> str:
    """Return `text` on one line, without its middle if it has more than `most` characters.

    Names come from untrusted files and may have any length.
    """
    text = printable(text)
    if len(text) <= most:
        return text
    return f"{text[: most // 2 - 1]}…{text[-(most - most // 2) :]}"


def distinct(names: Sequence[str], most: int) -> list[str]:
    """Return the names, shortened to at most `most` characters and all different.

    If `shortened` would make names equal, the parts that they have in common are left out instead.
    If that is not enough, a number is added.
    """
    labels = [shortened(name, most) for name in names]
    for label in {label for label in labels if labels.count(label) > 1}:
        alike = [position for position, other in enumerate(labels) if other == label]
        texts = [printable(names[position]) for position in alike]
        start = shared(texts)
        stop = shared([text[start:][::-1] for text in texts])
        for position, text in zip(alike, texts, strict=True):
            labels[position] = _around(text, start, len(text) - stop, most)
    return _numbered(labels, most)


def _around(text: str, start: int, stop: int, most: int) -> str:
    """Return `text` shortened so that ``text[start:stop]`` stays, with some text around it."""
    room = most - 2 - (stop - start)
    if room < 2:
        return shortened(text, most)
    tail = min(len(text) - stop, room - room // 3)
    start = max(start - (room - tail), 0)
    gap = "…" if stop + tail < len(text) else ""
    return f"{'…' if start else ''}{text[start:stop]}{gap}{text[len(text) - tail :]}"


def _numbered(labels: list[str], most: int) -> list[str]:
    """Return the labels, with a number added to each that equals an earlier one."""
    taken: dict[str, None] = {}
    for label in labels:
        found, number = label, 1
        while found in taken:
            number += 1
            mark = f" ~{number}"
            found = label[: most - len(mark)] + mark
        taken[found] = None
    return list(taken)


def _shape(adapter: Adapter) -> dict[str, int]:
    return {"h": adapter.h, "k": adapter.k, "N": adapter.N, "modules": len(adapter)}
