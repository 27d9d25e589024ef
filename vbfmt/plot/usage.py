"""Draw how often vectors are selected: the paper's Fig. 8."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from vbfmt.analysis.statistics import Balance, balance
from vbfmt.plot import style
from vbfmt.plot.drawn import Drawn, Strips
from vbfmt.plot.scene import Scene

_MOST_BARS = 40


def draw(figure: Figure | SubFigure, scene: Scene) -> Drawn:
    """Draw a histogram of how often vectors are selected, and the curve for random selection."""
    axes = figure.subplots()
    found = balance(scene.adapter)
    width = max(1, -(-(found.most - found.least + 1) // _MOST_BARS))
    edges = np.arange(found.least, found.most + width + 1, width) - 0.5
    counts, _ = np.histogram(scene.usage, edges)
    axes.stairs(counts, edges, fill=True, color=style.BLUE, label="this adapter")
    _draw_chance(axes, found, scene.adapter.h * width, float(edges[0]), float(edges[-1]))
    axes.axvline(found.mean, color=style.INK, linewidth=1, linestyle=":", label="mean")
    axes.set_xlabel("times selected (sub-vectors)")
    axes.set_ylabel("number of vectors")
    axes.margins(x=0.02)
    style.whole_numbers(axes.xaxis)
    style.whole_numbers(axes.yaxis)
    style.legend_above(axes, ncols=3)
    starts = (edges[:-1] + 0.5).astype(int)
    times = [f"{s} times" if width == 1 else f"{s} to {s + width - 1} times" for s in starts]
    hover = Strips(axes, edges.tolist(), "{vectors} vectors are selected {times}",
                   {"vectors": counts, "times": times})  # fmt: skip
    caption = _caption(scene.adapter.h, found)
    return Drawn("How often each vector is selected", caption, (hover,))


def _draw_chance(axes: Axes, found: Balance, area: float, low: float, high: float) -> None:
    """Draw the normal approximation of the binomial distribution of random selection."""
    if not found.chance:
        return
    reach = 3.5 * found.chance
    x = np.linspace(max(0, min(low, found.mean - reach)), max(high, found.mean + reach), 300)
    z = (x - found.mean) / found.chance
    y = area * np.exp(-(z**2) / 2) / (found.chance * np.sqrt(2 * np.pi))
    axes.plot(x, y, color=style.VERMILLION, linewidth=1.5, label="if drawn at random")


def _caption(h: int, found: Balance) -> str:
    unused = f"{found.unused} of {h} unused" if found.unused else f"all {h} used"
    return (
        f"{unused}; {found.least} to {found.most} times, mean {found.mean:.4g} "
        f"± {found.spread:.3g} (at random ± {found.chance:.3g})"
    )
