"""A simple float64 implementation of the paper's mathematics, the reference for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def subvectors(logits: NDArray[Any], bank: NDArray[np.float32], k: int) -> NDArray[np.float64]:
    """Return u = Σ w(σ) α with w = Softmax(TopK(σ, k)) (Eq. 3.3), for every row of logits (n,
    h)."""
    result = []
    for row in logits.astype(np.float64):
        top = sorted(range(len(row)), key=lambda s: (-row[s], s))[:k]
        shares = np.exp(row[top] - row[top[0]])
        shares /= shares.sum()
        result.append(sum(w * bank[s].astype(np.float64) for w, s in zip(shares, top, strict=True)))
    return np.array(result).reshape(len(logits), bank.shape[1])


def bound(bank: NDArray[np.float32], k: int) -> float:
    """Return the largest error of an element: (k + 1) · 2⁻²⁴ · max|bank|, plus the rounding error
    of subnormal numbers."""
    return float((k + 1) * 2.0**-24 * np.abs(bank).max() + 2.0**-149)
