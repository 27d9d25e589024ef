"""`Module`: one adapted linear layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Module:
    """A linear layer that the adapter changes by ΔW = B·A.

    Attributes:
        name: dotted name in the base model.
        in_features, out_features: dimensions of the layer; b divides both.
        rank: number of rows of A and of columns of B.
        fan_in_fan_out: whether the layer stores its weight as (in, out), as transformers' Conv1D
            does.
    """

    name: str
    in_features: int
    out_features: int
    rank: int
    fan_in_fan_out: bool = False

    def rows(self, b: int) -> int:
        """Return the number of sub-vectors of length b that compose A and B."""
        return self.rank * (self.in_features + self.out_features) // b
