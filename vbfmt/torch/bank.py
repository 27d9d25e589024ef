"""The vector bank 𝓑 (paper, Sec. 3.2): one per adapter, shared by all of its layers."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import nn

from vbfmt._files import PathLike
from vbfmt.adapter import Adapter
from vbfmt.errors import ConfigError
from vbfmt.packed import load
from vbfmt.torch.config import COUNT, SPREAD, is_count, is_index, is_spread, require_setting
from vbfmt.torch.sharding import full_shape

SHARED_BOUND = 0.2


class VectorBank(nn.Module):
    """h trainable vectors of length b, drawn from U(−bound, bound) (paper, Table 7: 0.02).

    Attributes:
        weight: (h, b) float32 parameter.
        frozen: whether the bank is never trained, whichever adapter is active.
        train_unselected: whether unselected logits get a gradient too, so that training can find
            better vectors. Each gets the gradient that it would have in place of the smallest
            selected logit. In the paper and in PEFT, unselected logits get no gradient. Meant for
            frozen banks. A training step takes 2 · N · h · b more operations for N sub-vectors.
        starts_small: whether vector 0 is zero and has most of the weight in the initial sub-vectors
            of B, so that the update starts small. During training, the weight of the zero vector
            sets the size of a sub-vector.

    Raises:
        ConfigError: a size is not a whole number above 0, or the bound is not finite.
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
        require_setting(is_count(num_vectors), "num_vectors", num_vectors, COUNT)
        require_setting(is_count(vector_length), "vector_length", vector_length, COUNT)
        require_setting(is_spread(init_bound), "init_bound", init_bound, SPREAD)
        weight = torch.empty(num_vectors, vector_length, dtype=torch.float32, device=device)
        self.weight = nn.Parameter(weight.uniform_(-init_bound, init_bound))
        self.frozen = False
        self.train_unselected = False
        self.starts_small = False

    @classmethod
    def from_seed(
        cls, seed: int, num_vectors: int, vector_length: int, *, bound: float = SHARED_BOUND
    ) -> VectorBank:
        """Return a frozen random bank for many adapters to share.

        Vector 0 is zero; the others are drawn from U(−bound, bound). The same arguments give the
        same bytes everywhere, so the bank can be recreated from its seed. Training only selects and
        mixes its vectors. For that, `train_unselected` and `starts_small` are on, and
        `param_groups` uses a learning rate of 4e-2 for the logits. To resume training, recreate the
        bank and pass it to `load_checkpoint`.

        Args:
            seed: a whole number, at least 0.
            bound: choose it larger than for a trained bank, because frozen vectors cannot grow.

        Raises:
            ConfigError: a size, the seed or the bound is out of range.
        """
        require_setting(is_index(seed), "seed", seed, "a whole number, at least 0")
        bank = cls(num_vectors, vector_length, init_bound=bound, device="meta")
        # numpy promises the same raw output in all versions, but not the same uniform numbers.
        raw = np.random.PCG64(seed).random_raw(num_vectors * vector_length) >> np.uint64(40)
        values = (raw.astype(np.float64) * 2.0**-23 + (2.0**-24 - 1)) * bound
        weight = torch.from_numpy(values.astype(np.float32)).view(num_vectors, vector_length)
        weight[0] = 0
        bank.weight = nn.Parameter(weight)
        bank.train_unselected = bank.starts_small = True
        return bank.freeze()

    @classmethod
    def from_packed(cls, source: Adapter | PathLike, *, frozen: bool = True) -> VectorBank:
        """Return the bank of a packed adapter, to train the logits of another task on it.

        Args:
            source: an adapter, or the path of its packed file.
            frozen: freeze the bank, so that all tasks on it can share one copy.

        Raises:
            VbfmtError: the file is damaged or cannot be read.
        """
        adapter = source if isinstance(source, Adapter) else load(source)
        bank = cls(adapter.h, adapter.b)
        with torch.no_grad():
            bank.weight.copy_(torch.tensor(adapter.bank))
        return bank.freeze() if frozen else bank

    def freeze(self) -> VectorBank:
        """Freeze the bank: no adapter trains it from now on. Return the bank."""
        self.frozen = True
        self.weight.requires_grad_(False)
        return self

    @property
    def num_vectors(self) -> int:
        """h, the number of vectors."""
        return full_shape(self.weight)[0]

    @property
    def vector_length(self) -> int:
        """b, the length of a vector."""
        return full_shape(self.weight)[1]

    def extra_repr(self) -> str:
        """Return h, b and whether the bank is frozen, for ``repr``."""
        frozen = ", frozen" if self.frozen else ""
        return f"h={self.num_vectors}, b={self.vector_length}{frozen}"


def require_vector_bank(bank: object) -> None:
    """Check that `bank` is a `VectorBank` and not, for example, a tensor.

    Raises:
        ConfigError: `bank` is of another class. The message says how to make one.
    """
    if isinstance(bank, VectorBank):
        return
    advice = "make one: VectorBank(num_vectors, vector_length)"
    if isinstance(bank, torch.Tensor):
        advice = "bank = VectorBank(*tensor.shape), then bank.weight.data.copy_(tensor)"
    elif isinstance(bank, Adapter | str | os.PathLike):
        advice = "for the bank of a packed adapter, use VectorBank.from_packed"
    raise ConfigError(
        "not a vector bank",
        part="bank",
        found=type(bank).__name__,
        expected="a VectorBank",
        advice=advice,
    )
