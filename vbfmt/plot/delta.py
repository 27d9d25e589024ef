"""Draw how much the adapter changes each layer: ‖ΔW‖ by layer and kind of module."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from vbfmt.analysis.module_names import kinds
from vbfmt.analysis.statistics import delta_norms
from vbfmt.plot import style
from vbfmt.plot.drawn import Cells, Drawn
from vbfmt.plot.scene import Scene, distinct, layer_name, shortened

_MOST_KINDS = 24
_MOST_COLUMNS = 600
_FEW_CELLS = 200


def draw(figure: Figure | SubFigure, scene: Scene) -> Drawn:
    """Draw a cell for each kind of module in each layer.

    A cell with several modules shows the root mean square of their norms, because the sum would be
    far larger than the norms in cells with one module. If there are too many layers, neighbouring
    layers share a cell.
    """
    names, columns, norms, several = _grid(scene)
    axes = figure.subplots()
    image = style.cells(
        axes,
        norms,
        cmap=style.SEQUENTIAL,
        vmin=0,
        vmax=float(np.nanmax(norms)) or 1.0,  # all norms are 0 if all vectors are
    )
    labels = distinct(names, 24)
    axes.set_yticks(range(len(names)), labels, fontsize=9)
    step = -(-len(columns) // 16)
    shown = ["outside" if layers[0] is None else str(layers[0]) for layers in columns]
    axes.set_xticks(range(0, len(columns), step), shown[::step])
    axes.set_xlabel("layer")
    axes.tick_params(length=0)
    if norms.size <= _FEW_CELLS and len(columns) <= 16:
        _write_values(axes, norms)
    scale = "Frobenius norm of ΔW" + (" (root mean square of several)" if several else "")
    style.colour_bar(axes, image, scale, pad=0.02, fraction=0.05)
    row, column = np.unravel_index(int(np.nanargmax(norms)), norms.shape)
    where = [_column_name(layers) for layers in columns]
    caption = (
        f"‖ΔW‖ from {np.nanmin(norms):.3g} to {np.nanmax(norms):.3g}; "
        f"most: {labels[row]}, {where[column]}"
    )
    text = "{row}, {column}: ‖ΔW‖ = {value}"
    long = [shortened(name, 120) for name in names]
    hover = Cells(axes, text, where, long, {"value": norms})
    return Drawn("How much each layer changes", caption, (hover,))


def _grid(
    scene: Scene,
) -> tuple[list[str], list[list[int | None]], NDArray[np.float64], bool]:
    """Return kinds (rows), the layers of each column, norms, and whether a cell has several
    modules.

    The norms are (rows, columns) float64, NaN where there is no module.
    """
    names, kind = kinds(scene.positions, _MOST_KINDS)
    columns, column = _columns(scene.layers)
    cell, size = kind * len(columns) + column, len(names) * len(columns)
    squares = np.bincount(cell, delta_norms(scene.adapter) ** 2, minlength=size)
    counts = np.bincount(cell, minlength=size)
    means = np.divide(squares, counts, out=np.full(size, np.nan), where=counts > 0)
    norms: NDArray[np.float64] = np.sqrt(means).reshape(len(names), len(columns))
    return names, columns, norms, bool((counts > 1).any())


def _columns(layers: NDArray[np.float64]) -> tuple[list[list[int | None]], NDArray[np.intp]]:
    """Return the layers of each column, and the column of each module, (M,) intp.

    There are at most `_MOST_COLUMNS` columns of layers. If there are more layers, neighbouring
    layers share a column.

    Args:
        layers: the layer of each module, infinity if it is outside the layers.
    """
    found, position = np.unique(layers, return_inverse=True)
    numbers = found[np.isfinite(found)].astype(int).tolist()
    each = max(1, -(-len(numbers) // _MOST_COLUMNS))
    columns: list[list[int | None]] = [
        [*numbers[start : start + each]] for start in range(0, len(numbers), each)
    ]
    column = np.where(position < len(numbers), position // each, len(columns))
    return columns + ([[None]] if len(found) > len(numbers) else []), column


def _column_name(layers: list[int | None]) -> str:
    return layer_name(layers[0]) if len(layers) == 1 else f"layers {layers[0]}–{layers[-1]}"


def _write_values(axes: Axes, norms: NDArray[np.float64]) -> None:
    most = float(np.nanmax(norms))
    # The largest value gets three digits, and the others as many decimals: 0.97 beside 1.00.
    decimals = 2 - int(np.floor(np.log10(most))) if most else 0
    form = f".{max(decimals, 0)}f" if -2 <= decimals <= 5 else ".1e"
    for (row, column), value in np.ndenumerate(norms):
        if np.isfinite(value):
            axes.text(
                column, row, f"{value:{form}}", ha="center", va="center",
                fontsize=8 if norms.shape[1] <= 10 else 6,
                color="white" if value < most / 2 or not most else style.INK,
            )  # fmt: skip
