"""Which figures there are: each a drawing function, by the name that ``--figure`` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from matplotlib.figure import Figure, SubFigure

from vbfmt.plot import bank, delta, selection, usage, weights
from vbfmt.plot.drawn import Drawn
from vbfmt.plot.scene import Scene

Draw: TypeAlias = "Callable[[Figure | SubFigure, Scene], Drawn]"


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        draw: draws it onto an empty figure.
        wide: it takes a page's whole width.
    """

    draw: Draw
    wide: bool = False


FIGURES: Mapping[str, Picture] = MappingProxyType(
    {
        "usage": Picture(usage.draw),
        "norms": Picture(bank.draw_norms),
        "depth": Picture(weights.draw_depth),
        "kinds": Picture(weights.draw_kinds),
        "selection": Picture(selection.draw, wide=True),
        "projection": Picture(bank.draw_projection),
        "delta": Picture(delta.draw),
    }
)
"""In a page's order."""
