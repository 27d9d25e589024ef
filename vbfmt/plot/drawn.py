"""The result of a drawing function, with the values that a page shows under the pointer.

A page stores the values in columns, and one sentence with placeholders such as ``{column}`` for all
values. So a bank with thousands of vectors adds kilobytes, not megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Column: TypeAlias = "Sequence[str] | Sequence[float] | Sequence[int] | np.ndarray[Any, Any]"


@dataclass(frozen=True)
class Strips:
    """Upright strips next to each other: the bars of a histogram, the steps of a line.

    Attributes:
        axes: the axes that contain the strips.
        edges: edges of the strips along x, ascending, one more than there are strips.
        text: the sentence. A strip's values replace each ``{column}`` in it.
        columns: name → values, one for each strip.
    """

    axes: Axes
    edges: Sequence[float]
    text: str
    columns: Mapping[str, Column]


@dataclass(frozen=True)
class Cells:
    """A grid of cells of equal size that fills its axes.

    Attributes:
        axes: the axes that the grid fills, with the first row at the top.
        text: the sentence, with ``{column}``, ``{row}`` and ``{name}`` for a name of `values`.
        columns, rows: names of the columns and rows.
        values: name → values, (rows, columns). Nothing is shown for NaN.
    """

    axes: Axes
    text: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Points:
    """Points. The values of the point nearest to the pointer are shown.

    Attributes:
        axes: the axes that contain the points.
        xy: (n, 2) in data coordinates.
        text, columns: as in `Strips`.
    """

    axes: Axes
    xy: np.ndarray[Any, Any]
    text: str
    columns: Mapping[str, Column]


Hover: TypeAlias = "Strips | Cells | Points"


@dataclass(frozen=True)
class Drawn:
    """A finished figure.

    Attributes:
        title: what the figure shows.
        caption: the main result in words and numbers, also for readers who cannot see the figure.
        hovers: values that a page shows under the pointer. The axes of the first get the title.
    """

    title: str
    caption: str
    hovers: tuple[Hover, ...]


def as_json(hover: Hover, figure: Figure) -> dict[str, Any]:
    """Return the data for a page's script, with positions as fractions of the figure."""
    box = hover.axes.get_window_extent()
    width, height = figure.bbox.width, figure.bbox.height
    common = {
        "text": hover.text,
        "box": _rounded([box.x0 / width, 1 - box.y1 / height, box.x1 / width, 1 - box.y0 / height]),
    }
    if isinstance(hover, Strips):
        edges = np.asarray(hover.edges, dtype=float)
        pixels = hover.axes.transData.transform(np.column_stack([edges, np.zeros(len(edges))]))
        return {
            **common,
            "kind": "strips",
            "edges": _rounded(pixels[:, 0] / width),
            "columns": {name: _listed(column) for name, column in hover.columns.items()},
        }
    if isinstance(hover, Points):
        pixels = hover.axes.transData.transform(np.asarray(hover.xy, dtype=float))
        return {
            **common,
            "kind": "points",
            "x": _rounded(pixels[:, 0] / width),
            "y": _rounded(1 - pixels[:, 1] / height),
            "columns": {name: _listed(column) for name, column in hover.columns.items()},
        }
    return {
        **common,
        "kind": "cells",
        "columns": list(hover.columns),
        "rows": list(hover.rows),
        "values": {name: _listed(part.reshape(-1)) for name, part in hover.values.items()},
    }


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 5) for value in values]


def _listed(column: Column) -> list[Any]:
    """Return a column as a list, with floats rounded to four digits to keep a page small."""
    if isinstance(column, np.ndarray) and column.dtype.kind == "f":
        return [None if value != value else float(f"{value:.4g}") for value in column.tolist()]
    return column.tolist() if isinstance(column, np.ndarray) else list(column)
