"""Factors of a tensor that holds the weights of several modules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.merge.layout import Part


def factors(
    parts: Sequence[Part], adapter: LowRank, shape: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return A (rank, columns) and B (rows, rank) such that B·A has every part's update at its
    position. The rank is the sum of the modules' ranks."""
    rank = sum(part.module.rank for part in parts)
    a, b = np.zeros((rank, shape[1]), np.float32), np.zeros((shape[0], rank), np.float32)
    start = 0
    for part in parts:
        here = slice(start, start + part.module.rank)
        inner, outer = adapter.factors(part.module.name)
        block = part.block
        outer = outer[block.own_rows]
        if block.turned:
            a[here, block.rows] = outer.T
            b[block.columns, here] = inner.T
        else:
            a[here, block.columns] = inner
            b[block.rows, here] = outer
        start = here.stop
    return a, b
