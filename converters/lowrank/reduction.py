"""Lower the rank of a sum of adapters without computing ΔW."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vbfmt._math import blas
from vbfmt.converters.lowrank import Factor, LowRank
from vbfmt.errors import TargetError
from vbfmt.module import Module
from vbfmt.tensors import Tensor


@dataclass(frozen=True)
class Reduced:
    """The best approximation of a LoRA by modules of rank at most `rank`.

    Attributes:
        whole: the LoRA to approximate.
        rank: the largest rank of a module, at least 1.
        report: called with the name and the relative error (from `reduced`) of each module when its
            factors are computed.
    """

    whole: LowRank
    rank: int
    report: Callable[[str, float], None] | None = None

    @cached_property
    def modules(self) -> tuple[Module, ...]:
        """The modules of `whole`, with the lower ranks."""
        return tuple(self._module(module) for module in self.whole.modules)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The other trained tensors of `whole`."""
        return self.whole.tensors

    @property
    def base_model(self) -> str | None:
        """The base model of `whole`."""
        return self.whole.base_model

    @property
    def base_revision(self) -> str | None:
        """The revision of the base model of `whole`."""
        return self.whole.base_revision

    @property
    def config(self) -> str | None:
        """The config of `whole`."""
        return self.whole.config

    def factors(self, name: str) -> tuple[Factor, Factor]:
        """Return a module's reduced A (rank, in_features) and B (out_features, rank), float32.

        Raises:
            TargetError: a factor is too large for float32.
        """
        return self._factors(name, *self.whole.factors(name))

    def iter_factors(self) -> Iterator[tuple[Module, Factor, Factor]]:
        """Yield (module, A, B) for all modules in order; errors as `factors`."""
        for module, a, b in self.whole.iter_factors():
            yield self._module(module), *self._factors(module.name, a, b)

    def _factors(self, name: str, a: Factor, b: Factor) -> tuple[Factor, Factor]:
        a, b, error = reduced(a, b, self.rank)
        if self.report:
            self.report(name, error)
        return a, b

    def _module(self, module: Module) -> Module:
        return module if module.rank <= self.rank else replace(module, rank=self.rank)


def reduced(a: Factor, b: Factor, rank: int) -> tuple[Factor, Factor, float]:
    """Return the best approximation of B·A by factors of a lower rank (Eckart and Young, 1936).

    With B = Q₁R₁ and Aᵀ = Q₂R₂, B·A = Q₁ (R₁R₂ᵀ) Q₂ᵀ has the singular values of the small matrix
    R₁R₂ᵀ. ΔW itself is never formed. The computation is in float64.

    Args:
        a: A, (R, in_features).
        b: B, (out_features, R).
        rank: the new rank, at least 1. If R is not greater, `a` and `b` are returned unchanged.

    Returns:
        A (rank, in_features) and B (out_features, rank), float32, both scaled by the square roots
        of the singular values, and the relative error of their product in the Frobenius norm before
        it is rounded to float32.

    Raises:
        TargetError: a factor is too large for float32.
    """
    if len(a) <= rank:
        return a, b, 0.0
    with blas.few_threads((a.size + b.size) * len(a)):
        new_a, new_b, values = _truncated(a, b, rank)
    if not (np.isfinite(new_a).all() and np.isfinite(new_b).all()):
        raise TargetError(
            "too large for float32",
            part="`rank`",
            found=f"a singular value of {values[0]:.3g}",
            advice="give smaller `weights`",
        )
    norm = float(np.linalg.norm(values))
    error = float(np.linalg.norm(values[rank:])) / norm if norm else 0.0
    return new_a, new_b, error


def _truncated(a: Factor, b: Factor, rank: int) -> tuple[Factor, Factor, NDArray[np.float64]]:
    """Return A and B of the lower rank, and all singular values.

    Elements that are too large for float32 are infinite.
    """
    q1, r1 = np.linalg.qr(b.astype(np.float64))
    q2, r2 = np.linalg.qr(a.T.astype(np.float64))
    left, values, right = np.linalg.svd(r1 @ r2.T, full_matrices=False)
    kept = min(rank, len(values))
    roots = np.sqrt(values[:kept])
    new_b = np.zeros((len(b), rank), np.float32)
    new_a = np.zeros((rank, a.shape[1]), np.float32)
    with np.errstate(over="ignore"):
        new_b[:, :kept] = (q1 @ left[:, :kept]) * roots
        new_a[:kept] = roots[:, None] * (right[:kept] @ q2.T)
    return new_a, new_b, values
