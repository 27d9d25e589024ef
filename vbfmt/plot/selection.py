"""Draw which sub-vector selects which vector: the paper's Figs. 3 to 5."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from vbfmt.adapter import Adapter
from vbfmt.analysis.statistics import selections
from vbfmt.plot import style
from vbfmt.plot.drawn import Cells, Drawn
from vbfmt.plot.scene import Scene, shortened

_MOST_EXACT_ACROSS, _MOST_EXACT_DOWN = 1500, 128
_MOST_ACROSS, _MOST_DOWN = 600, 256
_SELECTIONS_PER_CELL = 4
_COMPARED_PER_CELL = 24
"""Number of selections per cell in a map of shares. A share of fewer selections would be noise."""
_ASPECT = 3  # a map is about three times as wide as it is high
_MOST_TICKS = 24
_COLOURS = (style.ORANGE, style.BLUE, style.INK)
_PAPER = "#F4F4F4"


def draw(figure: Figure | SubFigure, scene: Scene) -> Drawn:
    """Draw a map: sub-vectors along x, by layer, and vectors of the bank along y."""
    axes = figure.subplots()
    drawn = _draw_now(axes, scene) if scene.before is None else _draw_change(axes, scene)
    axes.set_ylabel(style.BY_INDEX)
    style.whole_numbers(axes.yaxis)
    _mark_layers(axes, scene)
    return drawn


def _size(adapter: Adapter, per_cell: int) -> tuple[int, int]:
    """Return the number of cells down and across.

    A small map has a cell for each vector and sub-vector. In a large map, cells are so large that
    each has several selections: single selections among hundreds of thousands of cells would look
    like dust.
    """
    if adapter.h <= _MOST_EXACT_DOWN and adapter.N <= _MOST_EXACT_ACROSS:
        return adapter.h, adapter.N
    cells = adapter.N * adapter.k / per_cell
    across = min(adapter.N, _MOST_ACROSS, max(1, round((cells * _ASPECT) ** 0.5)))
    return min(adapter.h, _MOST_DOWN, max(1, round(cells / across))), across


def _draw_now(axes: Axes, scene: Scene) -> Drawn:
    adapter = scene.adapter
    size = _size(adapter, _SELECTIONS_PER_CELL)
    counts = selections(adapter.indices[scene.row_order], adapter.h, size)
    exact = size == (adapter.h, adapter.N)
    image = style.cells(
        axes,
        counts,
        cmap=ListedColormap([_PAPER, style.BLUE]) if exact else style.ON_PAPER,
        vmin=0,
        extent=_extent(adapter),
    )
    if exact:
        caption = (
            f"each of {adapter.N} sub-vectors (across) selects {adapter.k} of {adapter.h} (blue)"
        )
    else:
        bar = style.colour_bar(axes, image, "selections in a cell", pad=0.01, fraction=0.03)
        bar.locator = MaxNLocator(integer=True, nbins=6)
        bar.update_ticks()
        caption = (
            f"{adapter.N * adapter.k:,} selections; a cell is about "
            f"{adapter.N / size[1]:.3g} sub-vectors × {adapter.h / size[0]:.3g} vectors"
        )
    text = "{column}; {row}: {count} selections"
    cells = Cells(axes, text, *_names(scene, size), {"count": counts})
    return Drawn("Which sub-vector selects which vector", caption, (cells,))


def _draw_change(axes: Axes, scene: Scene) -> Drawn:
    adapter, before = scene.adapter, scene.before
    assert before is not None
    size = _size(adapter, _COMPARED_PER_CELL)
    old, new = (one.indices[scene.row_order] for one in (before, adapter))
    same = old[:, :, None] == new[:, None, :]
    left, kept = ~same.any(axis=2), same.any(axis=1)
    parts = {
        "before": selections(old, adapter.h, size, left),
        "after": selections(new, adapter.h, size, ~kept),
        "both": selections(new, adapter.h, size, kept),
    }
    if size == (adapter.h, adapter.N):
        _draw_each(axes, adapter, parts)
    else:
        _draw_share(axes, adapter, parts)
    caption = (
        f"{kept.mean():.0%} of the selections are as before; "
        f"{kept.all(axis=1).mean():.0%} of the sub-vectors keep all of theirs"
    )
    text = "{column}; {row}: {before} before only, {after} after only, {both} both times"
    cells = Cells(axes, text, *_names(scene, size), parts)
    return Drawn("Selections before and after", caption, (cells,))


def _draw_each(axes: Axes, adapter: Adapter, parts: dict[str, NDArray[np.int64]]) -> None:
    """Draw each selection as a cell, coloured by whether it was made before, after or both."""
    numbers = sum(number * parts[name] for number, name in enumerate(parts, start=1))
    style.cells(
        axes,
        np.asarray(numbers),
        cmap=ListedColormap([_PAPER, *_COLOURS]),
        vmin=0,
        vmax=len(parts),
        extent=_extent(adapter),
    )
    labels = ("selected before only", "after only", "before and after")
    axes.legend(
        handles=[Patch(color=c, label=label) for c, label in zip(_COLOURS, labels, strict=True)],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=3,
        fontsize=9,
    )


def _draw_share(axes: Axes, adapter: Adapter, parts: dict[str, NDArray[np.int64]]) -> None:
    """Draw, for each cell, the share of its selections before and after that has changed.

    A cell has many selections here, and a mixture of their colours would be meaningless.
    """
    changed = (parts["before"] + parts["after"]).astype(np.float64)
    total = changed + 2 * parts["both"]
    share = np.divide(changed, total, out=np.full_like(changed, np.nan), where=total > 0)
    image = style.cells(
        axes,
        share,
        cmap=style.ON_PAPER,
        vmin=0,
        vmax=float(np.nanmax(share)) or 1.0,
        extent=_extent(adapter),
    )
    scale = "share of selections that changed"
    bar = style.colour_bar(axes, image, scale, pad=0.01, fraction=0.03)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _extent(adapter: Adapter) -> tuple[float, float, float, float]:
    return -0.5, adapter.N - 0.5, adapter.h - 0.5, -0.5


def _mark_layers(axes: Axes, scene: Scene) -> None:
    """Set ticks where layers begin, as many as fit."""
    layers = scene.layers[scene.row_groups[0][scene.row_order]]
    starts = np.flatnonzero(np.append(True, layers[1:] != layers[:-1]))
    step = -(-len(starts) // _MOST_TICKS)
    shown = starts[::step]
    names = ["outside" if np.isinf(layer) else f"{layer:.0f}" for layer in layers[shown]]
    axes.set_xticks((shown - 0.5).tolist(), names)
    axes.set_xlabel("sub-vectors, by layer (ticks: where a layer begins)")


def _names(scene: Scene, size: tuple[int, int]) -> tuple[list[str], list[str]]:
    """Return the names of the map's columns and rows."""
    module, in_b = scene.row_groups
    order = scene.row_order
    columns = []
    for first, last in _spans(scene.adapter.N, size[1]):
        ends = [
            _module_label(scene, int(module[order[i]]), bool(in_b[order[i]])) for i in (first, last)
        ]
        which = f"sub-vector {first}" if first == last else f"sub-vectors {first}–{last}"
        columns.append(f"{which} ({' to '.join(dict.fromkeys(ends))})")
    rows = [
        f"vector {first}" if first == last else f"vectors {first}–{last}"
        for first, last in _spans(scene.adapter.h, size[0])
    ]
    return columns, rows


def _module_label(scene: Scene, module: int, in_b: bool) -> str:
    position = scene.positions[scene.adapter.modules[module].name]
    layer = "" if position.layer is None else f"layer {position.layer} "
    return f"{layer}{shortened(position.kind, 30)} {'B' if in_b else 'A'}"


def _spans(n: int, count: int) -> list[tuple[int, int]]:
    """Return the first and last of n items in each of `count` bins."""
    bounds = -(-np.arange(count + 1) * n // count)
    return [(start, stop - 1) for start, stop in itertools.pairwise(bounds.tolist())]
