"""Add adapters, ΔW = Σ wᵢ ΔWᵢ, by concatenating their factors.

B·A of the sum is [w₁B₁ w₂B₂ …]·[A₁; A₂; …]. It is exact except for the rounding of wᵢBᵢ. Its rank
is the sum of the ranks, which `reduction` can lower.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from vbfmt import packed
from vbfmt.adapter import Adapter
from vbfmt.converters.lowrank import Factor
from vbfmt.errors import SourceError, TargetError, few
from vbfmt.module import Module
from vbfmt.tensors import SMALLEST_NORMAL, Tensor


@dataclass(frozen=True)
class Sum:
    """A weighted sum of adapters: for each module, Σ wᵢ ΔWᵢ over the adapters that have it.

    Attributes:
        parts: the adapters and their weights, at least one.
        drop_extras: whether trained biases and heads are left out.

    Raises:
        SourceError: a module has different shapes in two adapters, or two adapters have different
            tensors with the same name.
    """

    parts: tuple[tuple[Adapter, float], ...]
    drop_extras: bool = False

    def __post_init__(self) -> None:
        _ = self.modules, self.tensors

    @cached_property
    def _shares(self) -> dict[str, list[tuple[Adapter, float]]]:
        shares: dict[str, list[tuple[Adapter, float]]] = {}
        for adapter, weight in self.parts:
            for module in adapter:
                shares.setdefault(module.name, []).append((adapter, weight))
        return {name: shares[name] for name in sorted(shares, key=str.encode)}

    @cached_property
    def modules(self) -> tuple[Module, ...]:
        """The union of the adapters' modules, each with the sum of its ranks."""
        return tuple(
            _joined([adapter[name] for adapter, _ in shares])
            for name, shares in self._shares.items()
        )

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """The other trained tensors of all adapters, not scaled by the weights."""
        if self.drop_extras:
            return {}
        result: dict[str, Tensor] = {}
        for adapter, _ in self.parts:
            for name, tensor in adapter.tensors.items():
                if result.setdefault(name, tensor) != tensor:
                    raise SourceError(
                        "two adapters have different trained tensors with the same name",
                        part=name,
                        expected="biases and heads from at most one adapter",
                        advice="such tensors cannot be summed: use the adapters one by one",
                    )
        return {name: result[name] for name in sorted(result, key=str.encode)}

    @property
    def extras(self) -> tuple[str, ...]:
        """The names of all other trained tensors, including those left out."""
        return tuple(dict.fromkeys(name for adapter, _ in self.parts for name in adapter.tensors))

    @property
    def base_model(self) -> str | None:
        """The base model, if all adapters name the same one, else None."""
        return _the_same(self.base_models)

    @property
    def base_models(self) -> tuple[str | None, ...]:
        """The base model that each adapter names."""
        return tuple(adapter.base_model for adapter, _ in self.parts)

    @property
    def base_revision(self) -> str | None:
        """The base model's revision, if all adapters name the same one, else None."""
        return _the_same([adapter.base_revision for adapter, _ in self.parts])

    @property
    def config(self) -> str | None:
        """The config of the first adapter with trained biases or heads, or else of the first
        adapter.

        If several adapters have such tensors, `modules_to_save` is None, because the config of one
        adapter would not list all of them.
        """
        trained = [adapter for adapter, _ in self.parts if adapter.tensors]
        config = (trained or [self.parts[0][0]])[0].config
        if config is None or len(trained) < 2:
            return config
        return json.dumps({**json.loads(config), "modules_to_save": None})

    @property
    def tasks(self) -> tuple[str, ...]:
        """The task types that the adapters' configs name, each once."""
        configs = [json.loads(adapter.config or "{}") for adapter, _ in self.parts]
        return tuple(dict.fromkeys(str(c["task_type"]) for c in configs if c.get("task_type")))

    def factors(self, name: str) -> tuple[Factor, Factor]:
        """Return A (rank, in_features) and B (out_features, rank) of the sum, float32.

        Raises:
            TargetError: a weight times B is too large for float32, or so small that float32
                loses precision.
        """
        pairs = [(*adapter.factors(name), weight) for adapter, weight in self._shares[name]]
        if len(pairs) == 1 and pairs[0][2] == 1:
            return pairs[0][:2]
        return (
            np.concatenate([a for a, _, _ in pairs]),
            np.concatenate([_scaled(b, weight, name) for _, b, weight in pairs], axis=1),
        )

    def iter_factors(self) -> Iterator[tuple[Module, Factor, Factor]]:
        """Yield (module, A, B) for all modules in order. Errors are those of `factors`."""
        if len(self.parts) == 1 and self.parts[0][1] == 1:
            yield from self.parts[0][0].iter_factors()
            return
        for module in self.modules:
            yield module, *self.factors(module.name)


def weighted(
    adapters: Sequence[Adapter], weights: Sequence[float] = (), *, drop_extras: bool = False
) -> Sum:
    """Return the weighted sum of adapters.

    Args:
        adapters: at least one.
        weights: one weight for each adapter; by default, all are 1.
        drop_extras: leave out trained biases and heads.

    Raises:
        TargetError: there is no adapter, one is given twice, or there is not exactly one finite
            weight for each.
        SourceError: the adapters do not fit each other, as in `Sum`.
    """
    chosen = tuple(weights) or (1.0,) * len(adapters)
    if not adapters or len(chosen) != len(adapters) or not all(map(math.isfinite, chosen)):
        raise TargetError(
            "weights do not fit the adapters",
            part="`weights`",
            found=f"{', '.join(map(str, chosen)) or 'none'} for {len(adapters)} adapters",
            expected="one finite number for each",
        )
    seen: dict[str, int] = {}
    for number, adapter in enumerate(adapters if len(adapters) > 1 else (), 1):
        first = seen.setdefault(packed.digest(adapter), number)
        if first != number:
            raise TargetError(
                "an adapter is given twice",
                found=f"the same content in adapters {first} and {number} of {len(adapters)}",
                advice="give it once, with `weights`",
            )
    return Sum(tuple(zip(adapters, chosen, strict=True)), drop_extras)


def disagreement(total: Sum) -> str | None:
    """Return a notice if the adapters name different base models or tasks, or only some name a base
    model."""
    names = dict.fromkeys(filter(None, total.base_models))
    if len(names) > 1:
        return f"the adapters name different base models: {', '.join(names)}"
    if names and None in total.base_models:
        return f"one adapter names no base model, another names {next(iter(names))}"
    if len(total.tasks) > 1:
        return f"the adapters were trained for different tasks: {', '.join(total.tasks)}"
    return None


def unweighted(total: Sum) -> str | None:
    """Return a notice if an adapter with a weight other than 1 has tensors that are not scaled."""
    whole = [name for adapter, weight in total.parts if weight != 1 for name in adapter.tensors]
    if total.drop_extras or not whole:
        return None
    return f"trained biases and heads are not scaled by `weights`: {few(whole)}"


def without_effect(total: Sum) -> str | None:
    """Return a notice if an adapter has the weight 0: its ΔW adds nothing."""
    count = sum(weight == 0 for _, weight in total.parts)
    if not count:
        return None
    if count == len(total.parts):
        return "`weights=0`: ΔW is 0, so no module changes"
    return f"{count} of {len(total.parts)} adapters have `weights=0` and add nothing"


def _joined(modules: list[Module]) -> Module:
    first = modules[0]
    if len(modules) == 1:
        return first
    rank = sum(module.rank for module in modules)
    for module in modules:
        if replace(module, rank=first.rank) != first:
            raise SourceError(
                "the adapters do not fit each other",
                part=first.name,
                found=f"{module.in_features} → {module.out_features}",
                expected=f"{first.in_features} → {first.out_features}, stored the same way",
            )
    return replace(first, rank=rank)


def _scaled(b: Factor, weight: float, name: str) -> Factor:
    """Return w·B in float32, computed in float64 and rounded once.

    Raises:
        TargetError: the product is too large for float32, or so small that float32 loses
            precision.
    """
    if weight == 1:
        return b
    with np.errstate(over="ignore"):
        scaled: Factor = (b.astype(np.float64) * weight).astype(np.float32)
    if not np.isfinite(scaled).all():
        raise TargetError(
            "too large for float32",
            part=name,
            found=f"factors up to {np.abs(b).max():.3g} times {weight:g}",
            expected="at most 3.4e38",
            advice="give smaller `weights`",
        )
    largest = float(np.abs(b).max(initial=0))
    smallest = SMALLEST_NORMAL["F32"]
    if weight and largest * abs(weight) < smallest <= largest:
        raise TargetError(
            "too small for float32",
            part=name,
            found=f"factors up to {largest:.3g} times {weight:g}",
            expected=f"at least {smallest:.2g}, or the weight 0",
            advice="give larger `weights`",
        )
    return scaled


def _the_same(values: Collection[str | None]) -> str | None:
    different = set(values)
    return different.pop() if len(different) == 1 else None
