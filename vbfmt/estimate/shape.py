"""The sizes of a VB-LoRA adapter, and the vector lengths that fit a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vbfmt.estimate.architecture import Linear, dimensions

_USUAL = 256
"""The paper's b, the best one in its Table 6."""


@dataclass(frozen=True)
class Shape:
    """The sizes of an adapter.

    Attributes:
        h: number of vectors in the bank.
        b: length of a vector.
        k: number of vectors that a sub-vector selects.
        r: rank.
    """

    h: int
    b: int
    k: int = 2
    r: int = 4

    def subvectors(self, layers: Iterable[Linear]) -> int:
        """Return N = Σ r · (in + out) / b."""
        return sum(self.r * (layer.in_features + layer.out_features) // self.b for layer in layers)


def lengths_that_fit(layers: Sequence[Linear]) -> list[int]:
    """Return every b that divides all dimensions, in ascending order."""
    common = math.gcd(*dimensions(layers))
    small = [n for n in range(1, math.isqrt(common) + 1) if common % n == 0]
    return sorted({*small, *(common // n for n in small)})


def suggested_length(layers: Sequence[Linear]) -> int:
    """Return the largest b that divides all dimensions and is at most the paper's 256."""
    return max(n for n in lengths_that_fit(layers) if n <= _USUAL)
