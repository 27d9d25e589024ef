"""Join the factors A and B of the modules whose weights a tensor holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.merge.layout import Part


def factors(
    parts: Sequence[Part], adapter: LowRank, shape: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return A and B whose product has each module's ΔW at its position, and zeros elsewhere.

    Args:
        parts: positions of the modules' rows in the tensor.
        adapter: the adapter that has these modules.
        shape: (rows, columns) of the tensor.

    Returns:
        A (rank, columns) and B (rows, rank), float32. The rank is the sum of the modules' ranks.
    """
    rank = sum(part.module.rank for part in parts)
    a, b = np.zeros((rank, shape[1]), np.float32), np.zeros((shape[0], rank), np.float32)
    start = 0
    for part in parts:
        here = slice(start, start + part.module.rank)
        own_a, own_b = adapter.factors(part.module.name)
        rows, columns, own = (
            slice(None) if positions is None else positions
            for positions in (part.block.rows, part.block.columns, part.block.own_rows)
        )
        if part.block.transposed:
            a[here, rows] = own_b[own].T
            b[columns, here] = own_a.T
        else:
            a[here, columns] = own_a
            b[rows, here] = own_b[own]
        start = here.stop
    return a, b
