"""Rename an adapter's modules and tensors to their names in a loaded model.

The names may differ, because transformers 5 has changed some names of transformers 4.
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
    """Return the adapter with the names of a transformers model.

    Returns:
        The renamed adapter, or `adapter` itself if it already has the model's names, or if
        transformers 5 is not installed or does not know the model.
    """
    loaded = loaded_model.of_model(model)
    return adapter if loaded is None else renamed_in(adapter, loaded)


def renamed_in(adapter: LowRank, loaded: LoadedModel) -> LowRank:
    """Return the adapter with the names of a loaded model, or unchanged, as in `renamed`."""
    names = [f"{module.name}.weight" for module in adapter.modules]
    if all(name in loaded.shapes for name in names):
        return adapter
    found = loaded.renamed([*names, *adapter.tensors])
    own = {
        name: target
        for name, (target, pattern) in found.items()
        if pattern is None and target in loaded.shapes and name not in loaded.shapes
    }
    if len(set(own.values())) < len(own):
        return adapter
    return _Renamed(adapter, own)


@dataclass(frozen=True)
class _Renamed:
    """An adapter with other names.

    Attributes:
        inner: the adapter.
        names: name of its tensor, or ``….weight`` for its module → the new name.
    """

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
