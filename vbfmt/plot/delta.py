"""How far the adapter moves each layer: ‖ΔW‖ by layer and kind of module."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from vbfmt.places import kinds
from vbfmt.plot import style
from vbfmt.plot.drawn import Drawn
from vbfmt.plot.hover import Cells
from vbfmt.plot.scene import Scene, shortened
from vbfmt.statistics import delta_norms

_MOST_KINDS = 24
_FEW_CELLS = 200


def draw(figure: Figure | SubFigure, scene: Scene) -> Drawn:
    """A cell for each kind of module in each layer. Of several modules in a cell, the root of the
    sum of squares."""
    names, layers, norms = _grid(scene)
    axes = figure.subplots()
    image = axes.imshow(
        norms, aspect="auto", cmap=style.SEQUENTIAL, vmin=0, interpolation="nearest"
    )
    axes.set_yticks(range(len(names)), [shortened(name, 24) for name in names], fontsize=9)
    step = -(-len(layers) // 16)
    axes.set_xticks(range(0, len(layers), step), layers[::step])
    axes.set_xlabel("layer")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if norms.size <= _FEW_CELLS and len(layers) <= 16:
        _write_values(axes, norms)
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05)
    bar.set_label("Frobenius norm of ΔW")
    bar.outline.set_visible(False)
    title = "How far each layer is moved"
    row, column = np.unravel_index(int(np.nanargmax(norms)), norms.shape)
    caption = (
        f"‖ΔW‖ from {np.nanmin(norms):.3g} to {np.nanmax(norms):.3g}; "
        f"most: {shortened(names[row], 24)}, layer {layers[column]}"
    )
    style.title(axes, title, caption)
    text = "{row}, layer {column}: ‖ΔW‖ = {value}"
    return Drawn(title, caption, (Cells(axes, text, layers, names, {"value": norms}),))


def _grid(scene: Scene) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Names of rows and columns, and the norms; NaN where there is no module."""
    names, kind = kinds(scene.adapter, _MOST_KINDS)
    numbers = {place.layer for place in scene.places.values()}
    ordered: list[int | None] = [*sorted(number for number in numbers if number is not None)]
    ordered += [None] if None in numbers else []
    column = {number: position for position, number in enumerate(ordered)}
    squares = np.full((len(names), len(ordered)), np.nan)
    for position, (module, norm) in enumerate(
        zip(scene.adapter, delta_norms(scene.adapter).tolist(), strict=True)
    ):
        cell = int(kind[position]), column[scene.places[module.name].layer]
        squares[cell] = np.nansum([squares[cell], norm**2])
    return names, ["none" if n is None else str(n) for n in ordered], np.sqrt(squares)


def _write_values(axes: Axes, norms: NDArray[np.float64]) -> None:
    middle = float(np.nanmax(norms)) / 2
    for (row, column), value in np.ndenumerate(norms):
        if np.isfinite(value):
            axes.text(
                column, row, f"{value:.2g}", ha="center", va="center", fontsize=8,
                color="white" if value < middle else style.INK,
            )  # fmt: skip
