"""`Adapter`: the triplet {𝓑, 𝓘, 𝓥} of the paper (Sec. 3.4), with modules, names and metadata."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._format import rules
from vbfmt._math import composition
from vbfmt._math.admixture import Rows
from vbfmt.errors import ContentError
from vbfmt.module import Module
from vbfmt.tensors import Tensor

_ROWS_AT_ONCE = 16384


@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    """A VB-LoRA adapter in its canonical form, checked on construction. Do not write to its arrays.

    A row is the selection of one sub-vector: k indices and k − 1 weights. Rows are in the order of
    Eq. 3.2: by module; within a module, first A, then B; within a factor, by rank-one component,
    and then by position along the features. Modules are sorted by name.

    Attributes:
        bank: 𝓑, the vector bank, (h, b) float32.
        indices: 𝓘, (N, k) uint8 if h ≤ 256, else uint16.
        weights: 𝓥, (N, k − 1) float32, without the largest weight of each row.
        modules: the adapted modules, sorted by the UTF-8 bytes of their names.
        tensors: other trained tensors (biases, heads), by name, sorted in the same way.
        base_model, base_revision: the adapted model, as the source names it.
        config: the adapter config of the source as canonical JSON text, or None.
        metadata: arbitrary text by name.

    Raises:
        ContentError: a rule of the format is broken.
    """

    bank: NDArray[np.float32]
    indices: NDArray[np.unsignedinteger[Any]]
    weights: NDArray[np.float32]
    modules: tuple[Module, ...]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    base_model: str | None = None
    base_revision: str | None = None
    config: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tensors", "metadata"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        arrays = self.bank, self.indices, self.weights
        rules.raise_first(rules.broken_shape_rules(*arrays, self.modules))
        rules.raise_first(rules.broken_names(list(self.tensors), "other tensor"))
        rules.raise_first(self.broken_texts())
        rules.raise_first(rules.broken_value_rules(*arrays))

    def broken_texts(self) -> Iterator[ContentError]:
        """Yield each broken rule of the base model's name, the config and the metadata."""
        return rules.broken_texts(self.base_model, self.base_revision, self.config, self.metadata)

    def __reduce__(self) -> tuple[Any, ...]:
        values = (getattr(self, each.name) for each in dataclasses.fields(self))
        # Read-only mappings cannot be pickled.
        return Adapter, tuple(dict(v) if isinstance(v, MappingProxyType) else v for v in values)

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Any) -> Adapter:
        """Load a packed file from a path or ``hf://…``.

        Options and errors are those of `vbfmt.load`.
        """
        from vbfmt.packed import load

        return load(path, **options)

    def save(self, path: str | os.PathLike[str], **options: Any) -> str:
        """Write the packed file and return its digest.

        Options and errors are those of `vbfmt.save`.
        """
        from vbfmt.packed import save

        return save(self, path, **options)

    @property
    def digest(self) -> str:
        """The digest of the adapter's packed form, ``sha256:…``."""
        from vbfmt.packed import digest

        return digest(self)

    @classmethod
    def from_rows(
        cls,
        bank: NDArray[Any],
        rows: Mapping[Module, Rows],
        *,
        tensors: Mapping[str, Tensor] | None = None,
        base_model: str | None = None,
        base_revision: str | None = None,
        config: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Adapter:
        """Return an adapter from the rows of its modules. Modules and names may be in any order.

        Args:
            bank: (h, b), converted to float32.
            rows: module → its canonical rows, first those of A, then those of B.
            tensors, base_model, base_revision, config, metadata: as in `Adapter`.

        Raises:
            ContentError: there are no modules, or a rule of the format is broken.
        """
        modules = sorted(rows, key=lambda module: module.name.encode())
        tensors, metadata = tensors or {}, metadata or {}
        if not modules:
            raise ContentError("the adapter has no modules")
        return cls(
            bank=np.ascontiguousarray(bank, dtype="<f4"),
            indices=_little_endian(np.concatenate([rows[module].indices for module in modules])),
            weights=_little_endian(np.concatenate([rows[module].weights for module in modules])),
            modules=tuple(modules),
            tensors={name: tensors[name] for name in sorted(tensors, key=str.encode)},
            base_model=base_model,
            base_revision=base_revision,
            config=config,
            metadata={name: metadata[name] for name in sorted(metadata, key=str.encode)},
        )

    @property
    def h(self) -> int:
        """Number of vectors in the bank."""
        return int(self.bank.shape[0])

    @property
    def b(self) -> int:
        """Length of a vector, in elements."""
        return int(self.bank.shape[1])

    @property
    def k(self) -> int:
        """Number of vectors that a sub-vector selects."""
        return int(self.indices.shape[1])

    @property
    def rank(self) -> int:
        """The largest rank of the modules. `Module.rank` is the rank of one module."""
        return max(module.rank for module in self.modules)

    @property
    def N(self) -> int:  # noqa: N802 - the paper's name
        """Number of sub-vectors."""
        return int(self.indices.shape[0])

    @cached_property
    def _starts(self) -> dict[str, int]:
        counts = np.cumsum([0, *(module.rows(self.b) for module in self.modules)])
        return dict(zip((module.name for module in self.modules), counts.tolist(), strict=False))

    @cached_property
    def _by_name(self) -> dict[str, Module]:
        return {module.name: module for module in self.modules}

    def __iter__(self) -> Iterator[Module]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)

    def __contains__(self, module: object) -> bool:
        """Return whether the adapter has this `Module`, or a module with this name."""
        return module in (self.modules if isinstance(module, Module) else self._by_name)

    def _nearest(self, name: str) -> list[str]:
        """Return up to three names of modules that end with `name` or, if there are none, are
        similar."""
        from vbfmt._similar import nearest

        ending = [known for known in self._by_name if known.endswith(f".{name}")]
        similar = nearest(name, self._by_name)
        leaves = {known.rpartition(".")[2]: known for known in self._by_name}
        misspelt = [leaves[leaf] for leaf in nearest(name, leaves)]
        return (ending or similar or misspelt)[:3]

    def __getitem__(self, name: str) -> Module:
        """Return the module with that name.

        Raises:
            KeyError: there is no such module. The message suggests similar names.
        """
        try:
            return self._by_name[name]
        except KeyError:
            near = self._nearest(name)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise KeyError(f"no module {name!r} in this adapter{hint}") from None

    def rows(self, name: str) -> slice:
        """Return the slice of a module's rows in `indices` and `weights`.

        Raises:
            KeyError: there is no such module.
        """
        module = self[name]
        start = self._starts[name]
        return slice(start, start + module.rows(self.b))

    def subvectors(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Return the composed sub-vectors u = Σ wᵢ α_i (Eq. 3.3): (n, b) float32.

        Args:
            rows: the n rows to compose; by default, all.
        """
        return composition.subvectors(self.bank, self.indices[rows], self.weights[rows])

    def factors(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return A (rank, in_features) and B (out_features, rank), float32, with ΔW = B·A.

        Every element is within (k + 1) · 2⁻²⁴ · max|bank| + 2⁻¹⁵⁰ of the exact value. There is no
        scaling; for LoRA, this means alpha = rank.

        Raises:
            KeyError: there is no such module.
        """
        ((a, b),) = self._factors_of([self[name]])
        return a, b

    def delta(self, name: str) -> NDArray[np.float32]:
        """Return ΔW, float32, in the orientation of the layer's weight.

        It is B·A (out_features, in_features), or its transpose (in_features, out_features) if the
        module's `fan_in_fan_out` is true.

        Raises:
            KeyError: there is no such module.
        """
        a, b = self.factors(name)
        product: NDArray[np.float32] = b @ a
        return np.ascontiguousarray(product.T) if self[name].fan_in_fan_out else product

    def iter_factors(
        self,
    ) -> Iterator[tuple[Module, NDArray[np.float32], NDArray[np.float32]]]:
        """Yield (module, A, B) for all modules in order, with A and B as in `factors`.

        This is the fastest way to compute all factors: it composes thousands of rows at a time.
        """
        for group in self._groups():
            for module, (a, b) in zip(group, self._factors_of(group), strict=True):
                yield module, a, b

    def _groups(self) -> Iterator[list[Module]]:
        group: list[Module] = []
        count = 0
        for module in self.modules:
            group.append(module)
            count += module.rows(self.b)
            if count >= _ROWS_AT_ONCE:
                yield group
                group, count = [], 0
        if group:
            yield group

    def _factors_of(self, group: list[Module]) -> list[composition.Factors]:
        rows = slice(self.rows(group[0].name).start, self.rows(group[-1].name).stop)
        return composition.factors(self.bank, self.indices[rows], self.weights[rows], group)

    def __eq__(self, other: object) -> bool:
        """Return whether the packed files of both adapters are equal byte for byte."""
        if not isinstance(other, Adapter):
            return NotImplemented
        return (
            self.modules == other.modules
            and self.tensors == other.tensors
            and self.metadata == other.metadata
            and (self.base_model, self.base_revision) == (other.base_model, other.base_revision)
            and self.config == other.config
            and all(
                _same_bits(getattr(self, name), getattr(other, name))
                for name in ("bank", "indices", "weights")
            )
        )

    __hash__ = None  # type: ignore[assignment]

    def _repr_html_(self) -> str:
        """Return the adapter as an HTML table, for notebooks."""
        import html

        base = html.escape(self.base_model or "not named")
        rows = {
            "base model": base,
            "modules": f"{len(self):,}",
            "bank": f"h = {self.h:,} vectors of b = {self.b:,}",
            "sub-vectors": f"N = {self.N:,}, k = {self.k}",
            "rank": f"{self.rank}",
            "other tensors": f"{len(self.tensors):,}",
        }
        body = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows.items())
        return f"<table><caption>VB-LoRA adapter</caption>{body}</table>"

    def __repr__(self) -> str:
        base = f" of {self.base_model}" if self.base_model else ""
        others = f", {len(self.tensors)} other tensors" if self.tensors else ""
        return (
            f"<VB-LoRA adapter{base}: {len(self)} modules, h={self.h} b={self.b} k={self.k} "
            f"N={self.N}{others}>"
        )


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array in little-endian byte order."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and np.array_equal(one.view(np.uint8), other.view(np.uint8))
    )
