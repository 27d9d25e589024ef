"""Small adapters for stores."""

from __future__ import annotations

import numpy as np

from vbfmt import Adapter, Module, Rows

H, B, RANK = 16, 8, 1
BANK = (np.arange(H * B, dtype="<f4").reshape(H, B) - 50) / 64


def adapter(number: int, *, bank: int = 0, base: str = "base", **metadata: str) -> Adapter:
    """Return a different adapter for each number; `bank` selects one of several banks."""
    module = Module("layer", 2 * B, 2 * B, RANK)
    count = module.rows(B)
    first = (np.arange(count) + number) % H
    indices = np.stack([first, (first + 1) % H], axis=1).astype("u1")
    rows = Rows(indices, np.full((count, 1), 0.25, "<f4"))
    return Adapter.from_rows(
        BANK + np.float32(bank),
        {module: rows},
        base_model=base,
        metadata={"number": str(number), **metadata},
    )
