"""The interface of adapters for writers of LoRA: modules with their factors A and B."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vbfmt._files.peft_layout import WithExtras
from vbfmt.module import Module

Factor = NDArray[np.float32]


class LowRank(WithExtras, Protocol):
    """The common interface of an `Adapter`, a sum of adapters and a reduced sum."""

    @property
    def modules(self) -> tuple[Module, ...]:
        """The adapted modules with the ranks of their factors, sorted by name."""

    @property
    def base_model(self) -> str | None:
        """The adapted model, as the source names it."""

    @property
    def base_revision(self) -> str | None:
        """The revision of that model."""

    def factors(self, name: str) -> tuple[Factor, Factor]:
        """Return a module's A (rank, in_features) and B (out_features, rank), float32."""

    def iter_factors(self) -> Iterator[tuple[Module, Factor, Factor]]:
        """Yield (module, A, B) for all modules in order."""
