"""Draw the vector bank: its norms, and its projection onto a plane (the paper's Fig. 9)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from vbfmt.analysis.statistics import project
from vbfmt.plot import bins, style
from vbfmt.plot.drawn import Column, Drawn, Points, Strips
from vbfmt.plot.scene import Scene

_MOST_EDGES = 4000
_MOST_DOTS = 5000
_MOST_LABELS = 40


def draw_norms(figure: Figure | SubFigure, scene: Scene) -> Drawn:
    """Draw the norms of the bank's vectors in descending order."""
    axes = figure.subplots()
    order = scene.by_norm
    norms = scene.norms[order]
    bins.draw_bars(axes, norms, style.BLUE)
    axes.set_xlabel(style.BY_NORM)
    axes.set_ylabel("Euclidean norm")
    axes.margins(x=0)
    axes.set_ylim(0, None if norms[0] else 1)
    style.whole_numbers(axes.xaxis)
    caption = (
        f"from {norms[-1]:.3g} to {norms[0]:.3g}, median {np.median(norms):.3g}; "
        f"the longest is vector {order[0]} (index)"
    )
    return Drawn("Norms of the bank's vectors", caption, (_strips(axes, scene, norms),))


def _strips(axes: Axes, scene: Scene, norms: NDArray[np.float64]) -> Strips:
    """Return the values of each vector, or of each bin if there are too many vectors."""
    order, bounds = scene.by_norm, bins.bounds(len(norms), bins.MOST_NAMED)
    edges, times = (bounds - 0.5).tolist(), scene.usage[order]
    if bins.are_named(len(norms)):
        text = "vector {vector}: norm {norm}, selected {times} times"
        return Strips(axes, edges, text, {"vector": order, "norm": norms, "times": times})
    columns: dict[str, Column] = {
        "vectors": bins.names(order, bounds),
        "norm": bins.means_of(norms, bounds),
        "times": np.add.reduceat(times, bounds[:-1]),
    }
    text = "{vectors}: mean norm {norm}, selected {times} times in all"
    return Strips(axes, edges, text, columns)


def draw_projection(figure: Figure | SubFigure, scene: Scene) -> Drawn:
    """Draw vectors and sub-vectors on the bank's two principal components.

    For k = 2 a sub-vector lies on the edge between its two vectors, also in the projection.
    """
    axes = figure.subplots()
    found = project(scene.adapter)
    indices = scene.adapter.indices
    if scene.adapter.k == 2 and len(indices) <= _MOST_EDGES:
        axes.add_collection(
            LineCollection(
                list(found.vectors[indices]),
                colors=style.FAINT,
                linewidths=0.5 if len(indices) <= 500 else 0.25,
                zorder=1,
                rasterized=len(indices) > 2000,
            )
        )
    _draw_subvectors(axes, found.subvectors)
    _draw_vectors(axes, found.vectors, scene.usage)
    first, second = found.explained
    axes.set_xlabel(f"1st principal component ({first:.1%} of the variance)")
    axes.set_ylabel(f"2nd ({second:.1%})")
    style.legend_above(axes, handles=_legend_handles(scene.adapter.N), ncols=2)
    caption = f"{scene.adapter.h} vectors and {scene.adapter.N:,} sub-vectors that they compose" + (
        ", on the edges between two vectors" if scene.adapter.k == 2 else ""
    )
    if scene.adapter.h <= _MOST_LABELS:
        caption += "; numbers: index in the bank"
    named = np.sort(np.argsort(-scene.usage, kind="stable")[: bins.MOST_NAMED])
    hover = Points(
        axes,
        found.vectors[named],
        "vector {vector}: selected {times} times, norm {norm}",
        {"vector": named, "times": scene.usage[named], "norm": scene.norms[named]},
    )
    return Drawn("Vector bank and sub-vectors", caption, (hover,))


def _draw_subvectors(axes: Axes, points: NDArray[np.float64]) -> None:
    """Draw a dot for each sub-vector, or their density if there are too many."""
    if len(points) > _MOST_DOTS:
        axes.hexbin(
            *points.T,
            gridsize=70,
            mincnt=1,
            bins="log",
            cmap=style.ON_PAPER,
            linewidths=0.1,
            rasterized=True,
        )
        return
    few = len(points) <= 500
    axes.plot(
        *points.T,
        linestyle="none",
        marker=".",
        markersize=5 if few else 3,
        markeredgewidth=0,
        color=style.BLUE,
        alpha=1.0 if few else 0.6,
    )


def _draw_vectors(axes: Axes, points: NDArray[np.float64], usage: NDArray[np.int64]) -> None:
    h = len(points)
    if h > _MOST_DOTS:  # drawing equal dots is ten times as fast
        axes.plot(
            *points.T,
            linestyle="none",
            marker="o",
            markersize=2.2,
            markerfacecolor=style.ORANGE,
            markeredgecolor=style.INK,
            markeredgewidth=0.4,
            alpha=0.7,
            zorder=3,
            rasterized=True,
        )
        return
    sizes = 10 + 30 * usage / max(int(usage.max()), 1) if h <= 300 else np.full(h, 5.0)
    axes.scatter(
        points[:, 0],
        points[:, 1],
        s=sizes,
        facecolor=style.ORANGE,
        edgecolor=style.INK,
        linewidth=0.4,
        alpha=0.9 if h <= 300 else 0.7,
        zorder=3,
        rasterized=h > 300,
    )
    if h <= _MOST_LABELS:
        for number, (x, y) in enumerate(points):
            axes.annotate(
                str(number), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7.5
            )


def _legend_handles(n: int) -> list[Line2D]:
    dense = n > _MOST_DOTS
    return [
        Line2D(
            [], [], linestyle="none", marker="o", markersize=7, markerfacecolor=style.ORANGE,
            markeredgecolor=style.INK, markeredgewidth=0.6, label="vectors of the bank",
        ),
        Line2D(
            [], [], linestyle="none", marker="h" if dense else "o", markersize=8 if dense else 4,
            markeredgewidth=0, color=style.BLUE, alpha=0.7,
            label="sub-vectors (darker: more)" if dense else "sub-vectors",
        ),
    ]  # fmt: skip
