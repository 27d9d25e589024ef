"""An adapter under the names that its modules have in a model at hand.

An adapter made with transformers 4 has names that transformers 5 has changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from vbfmt.converters.lowrank import Factor, LowRank
from vbfmt.converters.names import loaded_model
from vbfmt.converters.names.loaded_model import LoadedModel
from vbfmt.module import Module
from vbfmt.tensors import Tensor


def renamed(adapter: LowRank, model: Any) -> LowRank:
    """The adapter with the model's own names, where transformers can tell them; else as it is."""
    known = loaded_model.of_model(model)
    return adapter if known is None else renamed_in(adapter, known)


def renamed_in(adapter: LowRank, known: LoadedModel) -> LowRank:
    """The same for a model that transformers has told the names of."""
    names = [f"{module.name}.weight" for module in adapter.modules]
    if all(name in known.shapes for name in names):
        return adapter
    found = known.renamed([*names, *adapter.tensors])
    own = {
        name: target
        for name, (target, pattern) in found.items()
        if pattern is None and target in known.shapes and name not in known.shapes
    }
    if len(set(own.values())) < len(own):
        return adapter
    return _Renamed(adapter, own)


@dataclass(frozen=True)
class _Renamed:
    """An adapter under other names, by those of its tensors."""

    inner: LowRank
    names: Mapping[str, str]

    def _new(self, module: Module) -> Module:
        weight = f"{module.name}.weight"
        return replace(module, name=self.names.get(weight, weight).removesuffix(".weight"))

    @cached_property
    def _old(self) -> dict[str, str]:
        return {self._new(module).name: module.name for module in self.inner.modules}

    @cached_property
    def modules(self) -> tuple[Module, ...]:
        new = map(self._new, self.inner.modules)
        return tuple(sorted(new, key=lambda module: module.name.encode()))

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {self.names.get(name, name): value for name, value in self.inner.tensors.items()}

    @property
    def base_model(self) -> str | None:
        return self.inner.base_model

    @property
    def base_revision(self) -> str | None:
        return self.inner.base_revision

    @property
    def config(self) -> str | None:
        return self.inner.config

    def factors(self, name: str) -> tuple[Factor, Factor]:
        return self.inner.factors(self._old[name])

    def iter_factors(self) -> Iterator[tuple[Module, Factor, Factor]]:
        for module in self.modules:
            yield module, *self.factors(module.name)
