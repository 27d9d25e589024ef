"""Who uses which vector: admixture weights by depth (Fig. 6) and by kind of module (Fig. 7)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from vbfmt.places import kinds, thirds
from vbfmt.plot import style
from vbfmt.plot.drawn import Drawn
from vbfmt.plot.hover import Cells, Strips
from vbfmt.plot.scene import Scene, shortened
from vbfmt.statistics import weight_sums

_MOST_KINDS = 12
_MOST_STRIPS = 320
_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE)
_ALONG = "vectors of the bank, by descending norm"


def draw_depth(figure: Figure | SubFigure, scene: Scene) -> Drawn:
    """One panel for each third of the layers, one bar for each vector."""
    names, of_module = thirds(scene.adapter)
    module, _ = scene.row_groups
    sums = weight_sums(scene.adapter, of_module[module], len(names))[:, scene.by_norm]
    panels = figure.subplots(len(names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    edges = np.arange(scene.adapter.h + 1) - 0.5
    hovers = []
    for axes, name, values, colour in zip(panels, names, sums, _COLOURS, strict=False):
        _draw_bars(axes, values, colour)
        axes.axhline(values.mean(), color=style.INK, linewidth=0.8, linestyle=":")
        axes.margins(x=0)
        axes.text(
            0.995, 0.93, name, transform=axes.transAxes, ha="right", va="top", fontsize=10,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2},
        )  # fmt: skip
        hovers.append(
            Strips(
                axes,
                edges.tolist(),
                name + ": vector {vector} has weight {weight}",
                {"vector": scene.by_norm, "weight": values},
            )
        )
    panels[-1].set_xlabel(_ALONG)
    figure.supylabel("sum of admixture weights", fontsize=10)
    title = "Vectors by depth"
    notes = ["dotted: mean"]
    if scene.adapter.h > _MOST_STRIPS:
        notes.append("pale: the most of neighbouring vectors")
    if len(names) > 1:
        notes.append(f"two groups agree on {1 - _apart(sums):.0%} of their weight")
    caption = "; ".join(notes)
    style.title(panels[0], title, caption)
    return Drawn(title, caption, tuple(hovers))


def _draw_bars(axes: Axes, values: NDArray[np.float64], colour: str) -> None:
    """A bar for each vector; of too many to tell apart, the mean of some, and pale their most."""
    bounds = _bins(len(values))
    edges = bounds - 0.5
    means = np.add.reduceat(values, bounds[:-1]) / np.diff(bounds)
    if len(means) < len(values):
        most = np.maximum.reduceat(values, bounds[:-1])
        axes.stairs(most, edges, fill=True, color=colour, alpha=0.3, linewidth=0)
    axes.stairs(means, edges, fill=True, color=colour)


def draw_kinds(figure: Figure | SubFigure, scene: Scene) -> Drawn:
    """One row for each kind of module and factor, one column for each vector: its share of the
    row's weight against an even one."""
    names, of_module = kinds(scene.adapter, _MOST_KINDS)
    module, in_b = scene.row_groups
    sums = weight_sums(scene.adapter, 2 * of_module[module] + in_b, 2 * len(names))
    labels = [f"{shortened(name, 24)} {factor}" for name in names for factor in "AB"]
    bounds = _bins(scene.adapter.h)
    even = sums.sum(axis=1, keepdims=True) / scene.adapter.h
    sums = np.add.reduceat(sums[:, scene.by_norm], bounds[:-1], axis=1)
    shares = sums / (np.maximum(even, np.finfo(float).tiny) * np.diff(bounds))
    axes = figure.subplots()
    image = axes.imshow(
        shares,
        aspect="auto",
        cmap=style.AROUND_EVEN,
        norm=TwoSlopeNorm(1, 0, max(float(np.quantile(shares, 0.995)), 2.0)),
        interpolation="nearest",
        extent=(-0.5, scene.adapter.h - 0.5, len(labels) - 0.5, -0.5),
    )
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_xlabel(_ALONG)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, extend="max", pad=0.02, fraction=0.05)
    bar.set_label("weight against an even share (1 = even)")
    bar.outline.set_visible(False)
    title = "Vectors by kind of module and factor"
    top = np.unravel_index(int(shares.argmax()), shares.shape)
    columns = _bin_names(scene.by_norm, bounds)
    where = columns[int(top[1])] if len(columns) == scene.adapter.h else "neighbouring vectors"
    caption = f"strongest: {labels[int(top[0])]}, {shares[top]:.3g} times an even share on {where}"
    style.title(axes, title, caption)
    text = "{row}: {value} times an even share to {column}"
    return Drawn(title, caption, (Cells(axes, text, columns, labels, {"value": shares}),))


def _bins(h: int) -> NDArray[np.intp]:
    """Where bins of vectors begin and end: one each, or as many as a screen shows."""
    count = min(h, _MOST_STRIPS)
    return np.arange(count + 1, dtype=np.intp) * h // count


def _bin_names(order: NDArray[np.intp], bounds: NDArray[np.intp]) -> list[str]:
    names = []
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        listed = ", ".join(map(str, order[start:stop].tolist()))
        names.append(f"vector {listed}" if stop - start == 1 else f"vectors {listed}")
    return names


def _apart(sums: NDArray[np.float64]) -> float:
    """The mean share of weight by which two groups' use of vectors differs: 0 to 1."""
    totals = np.maximum(sums.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    shares = sums / totals
    pairs = [
        0.5 * float(np.abs(one - other).sum())
        for position, one in enumerate(shares)
        for other in shares[position + 1 :]
    ]
    return sum(pairs) / len(pairs) if pairs else 0.0
