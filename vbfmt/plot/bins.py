"""Group neighbouring vectors into bins if a bank has more vectors than a screen can show."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

MOST = 320
"""Largest number of bars."""

MOST_NAMED = 4096
"""Largest number of vectors for which a page has the values of each."""


def bounds(h: int, most: int = MOST) -> NDArray[np.intp]:
    """Return the bounds of bins of vectors: one bin for each vector, or `most` bins."""
    count = min(h, most)
    return np.arange(count + 1, dtype=np.intp) * h // count


def draw_bars(axes: Axes, values: NDArray[np.float64], colour: str) -> None:
    """Draw a bar for each vector. For bins of vectors, draw the mean, and the maximum in a pale
    colour."""
    found = bounds(len(values))
    edges = found - 0.5
    means = means_of(values, found)
    if len(means) < len(values):
        most = np.maximum.reduceat(values, found[:-1])
        axes.stairs(most, edges, fill=True, color=colour, alpha=0.3, linewidth=0)
    axes.stairs(means, edges, fill=True, color=colour)


def means_of(values: NDArray[np.float64], bounds: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the mean of each bin, (bins,) float64."""
    found: NDArray[np.float64] = np.add.reduceat(values, bounds[:-1]) / np.diff(bounds)
    return found


def are_named(h: int) -> bool:
    """Return whether a page has the values of each of `h` vectors."""
    return h <= MOST_NAMED


def names(order: NDArray[np.intp], bounds: NDArray[np.intp]) -> list[str]:
    """Return a name for each bin: the indices of its vectors, or their number if the bank is large.

    Args:
        order: index in the bank of each vector, in the order of the bins.
    """
    found = []
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if stop - start == 1:
            found.append(f"vector {order[start]}")
        elif are_named(len(order)):
            listed = ", ".join(map(str, order[start:stop].tolist()))
            found.append(f"vectors {listed}")
        else:
            found.append(f"{stop - start} vectors of rank {start} to {stop - 1} by norm")
    return found
