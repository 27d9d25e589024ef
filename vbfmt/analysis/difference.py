"""Compare two adapters by part and module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vbfmt._math.admixture import all_weights
from vbfmt.adapter import Adapter
from vbfmt.errors import few
from vbfmt.module import Module


@dataclass(frozen=True)
class ModuleDifference:
    """A module that both adapters have and that differs between them.

    Attributes:
        name: name of the module.
        shapes: both shapes as text, if features, rank or orientation differ. The other attributes
            are then None.
        rows_reselected: number of rows that select other vectors of the bank.
        largest_weight: largest difference of an admixture weight in rows that select the same
            vectors.
        largest_factor: largest difference of an element of A or B.
    """

    name: str
    shapes: str | None = None
    rows_reselected: int | None = None
    largest_weight: float | None = None
    largest_factor: float | None = None


@dataclass(frozen=True)
class Difference:
    """The differences between adapters a and b.

    If they are equal, `parts` and the tuples are empty and `bank` is 0.

    Attributes:
        parts: part → difference as text, for sizes, texts and other tensors.
        bank: largest difference of an element of the banks; 0 if their shapes differ.
        only_in_a, only_in_b: names of modules that only one of them has.
        modules: modules in both that differ.
        compared: number of modules in both.
    """

    parts: dict[str, str] = field(default_factory=dict)
    bank: float = 0.0
    only_in_a: tuple[str, ...] = ()
    only_in_b: tuple[str, ...] = ()
    modules: tuple[ModuleDifference, ...] = ()
    compared: int = 0

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.lines()

    @property
    def largest(self) -> float:
        """The largest difference of an element of the factors, over the modules in both."""
        return max((module.largest_factor or 0.0 for module in self.modules), default=0.0)

    def lines(self) -> list[str]:
        """Return the differences as lines of text. All differing modules are in one line."""
        result = [f"{part}: {words}" for part, words in self.parts.items()]
        for where, names in (("first", self.only_in_a), ("second", self.only_in_b)):
            if names:
                result.append(f"{len(names)} modules only in the {where}: {few(names)}")
        if self.modules:
            names = tuple(module.name for module in self.modules)
            result.append(
                f"{len(names)} of {self.compared} modules: {few(names)}; "
                f"largest difference of a factor's element {self.largest:.3g}"
            )
        return result


def compare(a: Adapter, b: Adapter) -> Difference:
    """Return the differences between two adapters."""
    parts = {**_sizes(a, b), **_texts(a, b), **_tensors(a, b)}
    bank = 0.0
    if a.bank.shape == b.bank.shape and a.bank.tobytes() != b.bank.tobytes():
        bank = _largest(a.bank, b.bank)
        count = int(np.count_nonzero(a.bank.view("<u4") != b.bank.view("<u4")))
        parts["bank"] = f"{count} of {a.bank.size} elements, largest difference {bank:.3g}"
    names_a, names_b = ({module.name for module in adapter} for adapter in (a, b))
    both = sorted(names_a & names_b)
    found = () if _same_factors(a, b) else (_module(a, b, name) for name in both)
    return Difference(
        parts,
        bank,
        tuple(sorted(names_a - names_b)),
        tuple(sorted(names_b - names_a)),
        tuple(module for module in found if module),
        len(both),
    )


def _module(a: Adapter, b: Adapter, name: str) -> ModuleDifference | None:
    one, other = a[name], b[name]
    if one != other:
        return ModuleDifference(name, shapes=f"{_in_words(one)} and {_in_words(other)}")
    rows_a, rows_b = a.rows(name), b.rows(name)
    reselected, weight = None, None
    if a.k == b.k and a.b == b.b:
        same = (a.indices[rows_a] == b.indices[rows_b]).all(axis=1)
        reselected = int(np.count_nonzero(~same))
        full_a, full_b = all_weights(a.weights[rows_a]), all_weights(b.weights[rows_b])
        weight = _largest(full_a[same], full_b[same])
    factor = _largest_of_factors(a, b, rows_a, rows_b)
    if not reselected and not weight and not factor and a.k == b.k and a.b == b.b:
        return None
    return ModuleDifference(name, None, reselected, weight, factor)


def _largest_of_factors(a: Adapter, b: Adapter, rows_a: slice, rows_b: slice) -> float:
    """Return the largest difference of an element of A or B.

    It is computed in blocks, because factors may be far larger than the file. Whatever b is, the
    concatenated sub-vectors of a module are the elements of A, followed by those of B.
    """
    at_once = math.lcm(a.b, b.b)
    at_once *= max(1, _AT_ONCE // at_once)
    elements = (rows_a.stop - rows_a.start) * a.b
    largest = 0.0
    for begin in range(0, elements, at_once):
        end = min(begin + at_once, elements)
        one, other = (
            adapter.subvectors(
                slice(rows.start + begin // adapter.b, rows.start + end // adapter.b)
            ).reshape(-1)
            for adapter, rows in ((a, rows_a), (b, rows_b))
        )
        largest = max(largest, _largest(one, other))
    return largest


def _same_factors(a: Adapter, b: Adapter) -> bool:
    """Return whether both have the same modules, rows and bank."""
    values = ("bank", "indices", "weights")
    return a.modules == b.modules and all(
        np.array_equal(getattr(a, value), getattr(b, value)) for value in values
    )


_AT_ONCE = 1 << 18
"""Number of elements of factors that are compared at a time."""


def _in_words(module: Module) -> str:
    stored = ", stored transposed" if module.fan_in_fan_out else ""
    return f"{module.in_features} → {module.out_features}, rank {module.rank}{stored}"


def _sizes(a: Adapter, b: Adapter) -> dict[str, str]:
    return {
        name: f"{getattr(a, name)} and {getattr(b, name)}"
        for name in ("h", "b", "k")
        if getattr(a, name) != getattr(b, name)
    }


def _texts(a: Adapter, b: Adapter) -> dict[str, str]:
    parts: dict[str, str] = {}
    for name, words in (("base_model", "base model"), ("base_revision", "base revision")):
        if getattr(a, name) != getattr(b, name):
            parts[words] = f"{getattr(a, name)!r} and {getattr(b, name)!r}"
    if a.config != b.config:
        parts["config"] = _configs(a.config, b.config)
    if a.metadata != b.metadata:
        parts["metadata"] = f"differs at {few(_differing(a.metadata, b.metadata))}"
    return parts


def _configs(one: str | None, other: str | None) -> str:
    import json

    if one is None or other is None:
        return f"only in the {'second' if one is None else 'first'}"
    # Compare values as text, because to Python 1, 1.0 and true are equal.
    sides = (
        {key: json.dumps(value, sort_keys=True) for key, value in json.loads(text).items()}
        for text in (one, other)
    )
    keys = _differing(*sides)
    return f"differs at {few(keys)}" if keys else "has the same values, written differently"


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(key for key in {*one, *other} if one.get(key) != other.get(key)))


def _tensors(a: Adapter, b: Adapter) -> dict[str, str]:
    parts: dict[str, str] = {}
    for name in sorted(set(a.tensors) | set(b.tensors)):
        one, other = a.tensors.get(name), b.tensors.get(name)
        if one is None or other is None:
            parts[f"tensor {name}"] = f"only in the {'second' if one is None else 'first'}"
        elif (one.dtype, one.shape) != (other.dtype, other.shape):
            parts[f"tensor {name}"] = f"{one} and {other}"
        elif one != other:
            count = int(np.count_nonzero(one.data != other.data))
            parts[f"tensor {name}"] = f"{count} of {one.data.size} bytes"
    return parts


def _largest(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    if not a.size:
        return 0.0
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
