"""Draw which modules use which vectors: weights by depth (Fig. 6) and by kind (Fig. 7)."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from vbfmt.analysis.module_names import OUTSIDE, kinds, thirds
from vbfmt.analysis.statistics import weight_sum_spread, weight_sums
from vbfmt.plot import bins, style
from vbfmt.plot.drawn import Cells, Drawn, Strips
from vbfmt.plot.scene import Scene, distinct, shortened

_MOST_KINDS = 12
_PALE = 1.5
"""The colour scale reaches at least this many times the deviation of random selection."""
_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE)


def draw_depth(figure: Figure | SubFigure, scene: Scene) -> Drawn:
    """Draw a panel for each third of the layers, with a bar for each vector."""
    names, of_module = thirds(scene.positions)
    groups = of_module[scene.row_groups[0]]
    sums = weight_sums(scene.adapter, groups, len(names))[:, scene.by_norm]
    panels = figure.subplots(len(names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    bounds = bins.bounds(scene.adapter.h, bins.MOST_NAMED)
    each = bins.are_named(scene.adapter.h)
    vectors = scene.by_norm if each else bins.names(scene.by_norm, bounds)
    text = "vector {vector} has weight {weight}" if each else "{vector}: mean weight {weight}"
    hovers = []
    for axes, name, values, colour in zip(panels, names, sums, _COLOURS, strict=False):
        bins.draw_bars(axes, values, colour)
        axes.axhline(values.mean(), color=style.INK, linewidth=0.8, linestyle=":")
        axes.margins(x=0)
        axes.annotate(
            name.replace(" ", "\n", 1), (1, 0.5), xytext=(6, 0), xycoords="axes fraction",
            textcoords="offset points", va="center", fontsize=10,
        )  # fmt: skip
        hovers.append(
            Strips(
                axes,
                (bounds - 0.5).tolist(),
                f"{name}: {text}",
                {"vector": vectors, "weight": bins.means_of(values, bounds)},
            )
        )
    style.whole_numbers(panels[-1].xaxis)
    panels[-1].set_xlabel(style.BY_NORM)
    figure.supylabel("sum of admixture weights", fontsize=10)
    notes = ["dotted: mean"]
    if scene.adapter.h > bins.MOST:
        notes.append("pale: the maximum of neighbours")
    notes += _agreement(scene, names, groups, sums)
    return Drawn("Vectors by depth", "; ".join(notes), tuple(hovers))


def _agreement(
    scene: Scene, names: list[str], groups: NDArray[np.intp], sums: NDArray[np.float64]
) -> list[str]:
    """Return a note on the share of weight on which the groups of layers agree.

    The note also gives this share for random selection. Modules outside the layers are not
    included, because they are too few. If there are fewer than two groups, there is no note.
    """
    inside = len(names) - (OUTSIDE in names)
    if inside < 2:
        return []
    at_random = np.mean(
        [
            _agreeing(weight_sums(scene.adapter, groups, len(names), vectors)[:inside])
            for vectors in scene.at_random
        ]
    )
    return [
        f"groups of layers agree on {_agreeing(sums[:inside]):.0%} of their weight "
        f"(at random {at_random:.0%})"
    ]


def draw_kinds(figure: Figure | SubFigure, scene: Scene) -> Drawn:
    """Draw a row for each kind of module and factor, and a column for each vector.

    A cell shows the difference between the vector's weight and an even share, in standard
    deviations of random selection. Without this unit, rows with few sub-vectors would look
    strongest.
    """
    names, of_module = kinds(scene.positions, _MOST_KINDS)
    module, in_b = scene.row_groups
    groups, count = 2 * of_module[module] + in_b, 2 * len(names)
    rows = np.bincount(groups, minlength=count).tolist()
    bounds = bins.bounds(scene.adapter.h)
    far, at_random = _deviations(scene, groups, count, bounds)
    axes = figure.subplots()
    most = float(np.abs(far).max())
    limit = max(_PALE * at_random, float(np.quantile(np.abs(far), 0.999))) or 1.0
    image = style.cells(
        axes,
        far,
        cmap=style.AROUND_EVEN,
        vmin=-limit,
        vmax=limit,
        extent=(-0.5, scene.adapter.h - 0.5, count - 0.5, -0.5),
    )
    short = _with_factors(distinct(names, 24), rows)
    axes.set_yticks(range(count), short, fontsize=9)
    style.whole_numbers(axes.xaxis)
    axes.set_xlabel(style.BY_NORM)
    axes.set_ylabel("kind and factor (sub-vectors)")
    scale = "σ from an even share (σ: of vectors drawn at random)"
    extend = "both" if most > limit else "neither"
    style.colour_bar(axes, image, scale, extend=extend, pad=0.02, fraction=0.05)
    top = np.unravel_index(int(np.abs(far).argmax()), far.shape)
    columns = bins.names(scene.by_norm, bounds)
    first, end = bounds[top[1]], bounds[top[1] + 1]
    where = (
        f"{columns[int(top[1])]} (index; rank {first} by norm)"
        if end - first == 1
        else f"vectors of rank {first} to {end - 1} by norm"
    )
    caption = (
        f"strongest: {short[int(top[0])].rpartition(' ')[0]} on {where}, {far[top]:+.1f} σ "
        f"(at random ±{at_random:.1f})"
    )
    text = "{row}: {value} σ from an even share to {column}"
    long = _with_factors([shortened(name, 120) for name in names], rows)
    hover = Cells(axes, text, columns, long, {"value": far})
    return Drawn("Vectors by kind of module and factor", caption, (hover,))


def _with_factors(names: list[str], rows: list[int]) -> list[str]:
    """Return labels for A and B of each kind, with the number of sub-vectors."""
    both = [f"{name} {factor}" for name in names for factor in "AB"]
    return [f"{name} ({n:,})" for name, n in zip(both, rows, strict=True)]


def _deviations(
    scene: Scene, groups: NDArray[np.intp], count: int, bounds: NDArray[np.intp]
) -> tuple[NDArray[np.float64], float]:
    """Return how far each group's weight on each bin of vectors is from an even share, and the
    largest such deviation of random selection, averaged over several draws.

    The unit is the standard deviation of random selection. If it is 0, so is the result.

    Returns:
        (count, bins) float64, and the deviation of random selection.
    """
    sizes = np.diff(bounds)
    of_vector = np.empty(scene.adapter.h, dtype=np.intp)
    of_vector[scene.by_norm] = np.repeat(np.arange(len(sizes)), sizes)
    spread = weight_sum_spread(scene.adapter, groups, count, sizes)

    def away(vectors: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        sums = weight_sums(scene.adapter, groups, count, vectors, of_vector)
        sums -= sums.sum(axis=1, keepdims=True) / scene.adapter.h * sizes
        return np.divide(sums, spread, out=np.zeros_like(sums), where=spread > 0)

    at_random = [np.abs(away(vectors)).max() for vectors in scene.at_random]
    return away(), float(np.mean(at_random))


def _agreeing(sums: NDArray[np.float64]) -> float:
    """Return the share of weight, from 0 to 1, on which two groups agree, averaged over all
    pairs."""
    totals = np.maximum(sums.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    pairs = [np.minimum(*two).sum() for two in itertools.combinations(sums / totals, 2)]
    return float(np.mean(pairs))
