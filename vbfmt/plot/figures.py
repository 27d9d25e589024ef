"""All figures, by the names that ``--figure`` accepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from matplotlib.figure import Figure, SubFigure

from vbfmt.plot import bank, delta, selection, style, usage, weights
from vbfmt.plot.drawn import Drawn
from vbfmt.plot.scene import Scene

Draw: TypeAlias = "Callable[[Figure | SubFigure, Scene], Drawn]"


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        content: function that draws it, without its title, onto an empty matplotlib figure.
        wide: whether it has the whole width of a page.
    """

    content: Draw
    wide: bool = False

    def draw(self, figure: Figure | SubFigure, scene: Scene) -> Drawn:
        """Draw the figure, with its title and caption, onto an empty matplotlib figure."""
        drawn = self.content(figure, scene)
        style.title(drawn.hovers[0].axes, drawn.title, drawn.caption)
        return drawn


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
"""Name → figure, in the order of a page."""
