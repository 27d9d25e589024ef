"""The vector bank 𝓑 (paper, Sec. 3.2): one per adapter, shared by all of its layers."""

from __future__ import annotations

import os

import torch
from torch import nn

from vbfmt.adapter import Adapter
from vbfmt.errors import ConfigError
from vbfmt.packed import load


class VectorBank(nn.Module):
    """h trainable vectors of length b, initialised U(−bound, bound) (paper, Table 7: 0.02).

    Attributes:
        weight: (h, b) float32 parameter.
        frozen: never to be trained, whichever adapter is active: a bank that several tasks share.
    """

    def __init__(
        self,
        num_vectors: int,
        vector_length: int,
        *,
        init_bound: float = 0.02,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for what, size in (("num_vectors", num_vectors), ("vector_length", vector_length)):
            if size < 1:
                raise ConfigError(f"{what} is out of range", found=size, expected="at least 1")
        weight = torch.empty(num_vectors, vector_length, dtype=torch.float32, device=device)
        self.weight = nn.Parameter(weight.uniform_(-init_bound, init_bound))
        self.frozen = False

    @classmethod
    def from_packed(
        cls, source: Adapter | str | os.PathLike[str], *, frozen: bool = True
    ) -> VectorBank:
        """The bank of a packed adapter, to train the logits of another task on it.

        Args:
            source: an adapter, or the path of its packed file.
            frozen: keep it as it is, so that all tasks on it can share one copy.

        Raises:
            VbfmtError: the file is damaged or cannot be read.
        """
        adapter = source if isinstance(source, Adapter) else load(source)
        bank = cls(adapter.h, adapter.b)
        with torch.no_grad():
            bank.weight.copy_(torch.tensor(adapter.bank))
        return bank.freeze() if frozen else bank

    def freeze(self) -> VectorBank:
        """Keep it as it is from now on, whichever adapter trains."""
        self.frozen = True
        self.weight.requires_grad_(False)
        return self

    @property
    def num_vectors(self) -> int:
        """h."""
        return self.weight.shape[0]

    @property
    def vector_length(self) -> int:
        """b."""
        return self.weight.shape[1]

    def extra_repr(self) -> str:
        """h, b and whether it is frozen."""
        frozen = ", frozen" if self.frozen else ""
        return f"h={self.num_vectors}, b={self.vector_length}{frozen}"
