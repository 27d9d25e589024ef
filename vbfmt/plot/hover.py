"""What a reader sees who points at a picture: places in a figure, and the values there.

A page keeps numbers in columns and one sentence with ``{column}`` in it, so that a bank of
thousands of vectors adds kilobytes, not megabytes.
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
        axes: where.
        edges: their sides along x, ascending, one more than strips.
        text: the sentence; its ``{column}`` are replaced by the strip's values.
        columns: the values by name, each as long as there are strips.
    """

    axes: Axes
    edges: Sequence[float]
    text: str
    columns: Mapping[str, Column]


@dataclass(frozen=True)
class Cells:
    """A grid of cells of equal size that fills its axes.

    Attributes:
        axes: where; its first row is at the top.
        text: the sentence, with ``{column}``, ``{row}`` and the names of values.
        columns, rows: what its columns and rows are called.
        values: by name, each (rows, columns); NaN: nothing is shown.
    """

    axes: Axes
    text: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Points:
    """Points, of which the nearest is meant.

    Attributes:
        axes: where.
        xy: (n, 2) in data coordinates.
        text, columns: as of `Strips`.
    """

    axes: Axes
    xy: np.ndarray[Any, Any]
    text: str
    columns: Mapping[str, Column]


Hover: TypeAlias = "Strips | Cells | Points"


def as_json(hover: Hover, figure: Figure) -> dict[str, Any]:
    """The hover for a page's script. Positions are fractions of the figure from its top left."""
    box = hover.axes.get_window_extent()
    width, height = figure.bbox.width, figure.bbox.height
    common = {
        "text": hover.text,
        "box": _rounded([box.x0 / width, 1 - box.y1 / height, box.x1 / width, 1 - box.y0 / height]),
    }
    if isinstance(hover, Strips):
        edges = np.asarray(hover.edges, dtype=float)
        placed = hover.axes.transData.transform(np.column_stack([edges, np.zeros(len(edges))]))
        return {
            **common,
            "kind": "strips",
            "edges": _rounded(placed[:, 0] / width),
            "columns": {name: _listed(column) for name, column in hover.columns.items()},
        }
    if isinstance(hover, Points):
        placed = hover.axes.transData.transform(np.asarray(hover.xy, dtype=float))
        return {
            **common,
            "kind": "points",
            "x": _rounded(placed[:, 0] / width),
            "y": _rounded(1 - placed[:, 1] / height),
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
    """Numbers to four digits: more is not seen, and a page need not carry it."""
    if isinstance(column, np.ndarray) and column.dtype.kind == "f":
        return [None if value != value else float(f"{value:.4g}") for value in column.tolist()]
    return column.tolist() if isinstance(column, np.ndarray) else list(column)
