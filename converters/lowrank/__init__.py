"""What writers of LoRA take: factors A and B of modules, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vbfmt.module import Module
from vbfmt.tensors import Tensor

Factor = NDArray[np.float32]


class LowRank(Protocol):
    """What an `Adapter`, a sum of adapters and a reduced sum have in common."""

    @property
    def modules(self) -> tuple[Module, ...]:
        """The adapted modules with the ranks of their factors, sorted by name."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Other trained tensors by name."""

    @property
    def base_model(self) -> str | None:
        """What was adapted, as the source names it."""

    @property
    def base_revision(self) -> str | None:
        """Its revision."""

    @property
    def config(self) -> str | None:
        """The source's adapter config as JSON text."""

    def factors(self, name: str) -> tuple[Factor, Factor]:
        """A (rank, in_features) and B (out_features, rank), float32."""

    def iter_factors(self) -> Iterator[tuple[Module, Factor, Factor]]:
        """(module, A, B) of all modules in order."""
