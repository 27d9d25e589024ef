"""What a picture shows: an adapter, and how its parts are called."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vbfmt.adapter import Adapter
from vbfmt.errors import ContentError, printable
from vbfmt.places import Place, places, reading_order
from vbfmt.statistics import bank_norms, rows_by_module, usage


@dataclass(frozen=True)
class Scene:
    """An adapter to be drawn.

    Attributes:
        adapter: the adapter.
        name: what it is called, usually its file.
        before: the same adapter at an earlier time, for the selection map.

    Raises:
        ContentError: `before` is of another shape.
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
                    "the earlier adapter is of another shape",
                    part=what,
                    found=found[what],
                    expected=expected[what],
                    advice="--before wants the same model with the same h, k and ranks",
                )
        for one, other in zip(self.before, self.adapter, strict=True):
            if one != other:
                raise ContentError(
                    "the earlier adapter is of another model",
                    part=f"module {one.name}",
                    found=f"{one.in_features} → {one.out_features}, rank {one.rank}",
                    expected=f"{other.name}, {other.in_features} → {other.out_features}, "
                    f"rank {other.rank}",
                )

    @cached_property
    def usage(self) -> NDArray[np.int64]:
        """Times that each vector is selected: (h,)."""
        return usage(self.adapter)

    @cached_property
    def norms(self) -> NDArray[np.float64]:
        """Of the bank's vectors: (h,)."""
        return bank_norms(self.adapter)

    @cached_property
    def by_norm(self) -> NDArray[np.intp]:
        """The vectors by descending norm, as the paper's Figs. 6 and 7 have them: (h,)."""
        return np.argsort(-self.norms, kind="stable")

    @cached_property
    def places(self) -> dict[str, Place]:
        """Where each module stands, by name."""
        return places(module.name for module in self.adapter)

    @cached_property
    def row_groups(self) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Of every row, its module's number, and whether it belongs to B: (N,) both."""
        return rows_by_module(self.adapter)

    @cached_property
    def row_order(self) -> NDArray[np.intp]:
        """The rows from the first layer to the last: (N,)."""
        slices = (self.adapter.rows(name) for name in reading_order(self.adapter))
        return np.concatenate([np.arange(rows.start, rows.stop) for rows in slices])

    def heading(self) -> str:
        """The adapter in one line."""
        ranks = sorted({module.rank for module in self.adapter})
        a = self.adapter
        base = f"{shortened(a.base_model, 60)} · " if a.base_model else ""
        return (
            f"{base}{len(a)} modules · h = {a.h} vectors of b = {a.b} · k = {a.k} · "
            f"r = {', '.join(map(str, ranks))} · N = {a.N:,} sub-vectors"
        )


def shortened(text: str, most: int) -> str:
    """`text` on one line and at most that long, its middle left out: names from a file are other
    people's, and may be anything."""
    text = printable(text)
    if len(text) <= most:
        return text
    return f"{text[: most // 2 - 1]}…{text[-(most - most // 2) :]}"


def _shape(adapter: Adapter) -> dict[str, int]:
    return {"h": adapter.h, "k": adapter.k, "N": adapter.N, "modules": len(adapter)}
