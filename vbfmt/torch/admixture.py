"""The update of one adapter in one layer: ΔW·x = B·(A·x), without forming ΔW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vbfmt.torch.bank import VectorBank
from vbfmt.torch.composition import Composition, Matrices, Slot, compose_alone, split_rows
from vbfmt.torch.low_rank import (
    add_low_rank,
    is_plain_linear,
    is_special,
    linear_with_low_rank,
)
from vbfmt.torch.sharding import gathered

_LOGIT_OF_ZERO = 2.0  # if k is 4, the zero vector then has about two thirds of the weight


class LowRankUpdate(nn.Module):
    """The update B·(A·x) of a linear layer's output. Subclasses provide A and B."""

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A (rank, in_features) and B (out_features, rank)."""
        raise NotImplementedError

    def forward(self, x: Tensor, result: Tensor) -> Tensor:
        """Return result + B·(A·x), computed in the factors' dtype, or in autocast's.

        Args:
            x: (…, in_features); a nested tensor may have any ragged dimension but the last.
            result: (…, out_features), the base layer's output for x.

        Returns:
            (…, out_features) in the dtype of `result`.
        """
        return self._add(x, result, *self.factors())

    def _add(self, x: Tensor, result: Tensor, a: Tensor, b: Tensor) -> Tensor:
        low = nn.functional.linear(self.prepare(x.to(a.dtype)), a)
        # A base of lower precision: round once, at the end. Nested tensors cannot be flattened.
        if low.dtype != result.dtype or result.is_nested:
            return (result + nn.functional.linear(low, b)).to(result.dtype)
        # One pass over the output instead of two.
        flat = torch.addmm(result.reshape(-1, b.shape[0]), low.reshape(-1, b.shape[1]), b.t())
        return flat.view(result.shape)

    def prepare(self, x: Tensor) -> Tensor:
        """Return the input of the update: unchanged."""
        return x


class Admixture(LowRankUpdate):
    """The trainable update: a layer's logits over the vector bank.

    Attributes:
        logits: (n, h) parameter, n = rank · (in_features + out_features) / b. One row per
            sub-vector, in the order of the paper's Eq. 3.2: first A's, then B's; within each, by
            rank-one component, then by position along the features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bank: VectorBank,
        *,
        rank: int = 4,
        topk: int = 2,
        dropout: float = 0.0,
        init_logits_std: float = 0.1,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self._topk = topk
        b = bank.vector_length
        self.rows = [rank * in_features // b, rank * out_features // b]
        logits = torch.empty(sum(self.rows), bank.num_vectors, dtype=torch.float32, device=device)
        logits.normal_(0.0, init_logits_std)
        if bank.starts_small:
            logits[self.rows[0] :, 0] = _LOGIT_OF_ZERO
        self.logits = nn.Parameter(logits)
        self.dropout = nn.Dropout(dropout)
        # Not registered as a submodule: the adapter's owner registers the bank once.
        self._bank = (bank,)
        self._shared: tuple[Composition, Slot] | None = None

    @property
    def topk(self) -> int:
        """k: that of the composition that all layers share, if there is one."""
        return self._topk if self._shared is None else self._shared[0].topk

    @property
    def trained(self) -> list[nn.Parameter]:
        """The logits, or the parameters that a parametrization computes them from."""
        if not self.parametrized:
            return [self.logits]
        return [*self.get_submodule("parametrizations.logits").parameters()]

    @property
    def parametrized(self) -> bool:
        """Whether `torch.nn.utils.parametrize` computes the logits from other parameters."""
        return parametrize.is_parametrized(self, "logits")

    @property
    def bank(self) -> VectorBank:
        """The vector bank."""
        return self._bank[0]

    def share(self, composition: Composition) -> None:
        """From now on, use the sub-vectors of a composition that all layers share."""
        self._shared = composition, composition.add(self)

    def forward(self, x: Tensor, result: Tensor) -> Tensor:
        """Return result + B·(A·x), as one step of autograd where that gives the same values."""
        compiling = torch.compiler.is_compiling()
        a, bt = self._matrices(compiling)
        if compiling or result.is_nested or is_special(x):
            return self._add(x, result, a, bt.t())
        if self._drops:
            x = self.dropout(x.to(a.dtype))
        return add_low_rank(x, result, a, bt)

    def with_linear(self, x: Tensor, layer: Any) -> Tensor | None:
        """Return the layer's output for x with the update, computed in one step of autograd.

        Return None where that is not possible. Do not call this within torch.compile.
        """
        if self._drops or is_special(x) or not is_plain_linear(layer):
            return None
        return linear_with_low_rank(x, layer, *self._matrices(compiling=False))

    @property
    def _drops(self) -> bool:
        modules: dict[str, Any] = self._modules  # attributes of a module take longer
        drops: bool = self.training and modules["dropout"].p > 0
        return drops

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B, composed from the bank. They are views of this layer's sub-vectors."""
        a, bt = self._matrices(torch.compiler.is_compiling())
        return a, bt.t()

    def prepare(self, x: Tensor) -> Tensor:
        """Apply dropout to the input, as LoRA does."""
        dropped: Tensor = self.dropout(x)
        return dropped

    def extra_repr(self) -> str:
        """Return sizes, rank and k."""
        return f"{self.in_features} → {self.out_features}, rank={self.rank}, k={self.topk}"

    def _matrices(self, compiling: bool) -> Matrices:
        if self._shared is not None:
            composition, slot = self._shared
            now = self.logits
            found = composition.matrices_of(slot, now, compiling=compiling)
            # In replicas of nn.DataParallel, the sub-vectors are on the first device.
            if found is not None and found[0].device == now.device:
                return found
        bank, logits = self._bank[0], gathered(self.logits)
        weight = gathered(bank.weight).to(logits.device)
        composed = compose_alone(
            weight,
            logits,
            self.topk,
            train_unselected=bank.train_unselected,
            select=None if self._shared is None else self._shared[0].select_for(self),
        )
        return split_rows(composed, [self])[0]


class FixedFactors(LowRankUpdate):
    """The update of a packed adapter, for inference. Its factors cannot be trained.

    Attributes:
        a, b: (rank, in_features) and (out_features, rank) float32 buffers, not in state dicts.
    """

    a: Tensor
    b: Tensor

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.register_buffer("a", a, persistent=False)
        self.register_buffer("b", b, persistent=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B as they were unpacked."""
        return self.a, self.b
