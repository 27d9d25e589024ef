"""Summarize an adapter: its sizes, its modules and its use of the bank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbfmt.adapter import Adapter
from vbfmt.analysis.module_names import positions, reading_order
from vbfmt.analysis.statistics import Balance, balance, largest_weights, usage
from vbfmt.module import Module

_USAGE_BINS = 8
_WEIGHT_BINS = 5
_FEW = 256
"""Largest number of indices whose distinct values are counted without sorting."""


@dataclass(frozen=True)
class Group:
    """Modules of one kind: the same name within their layers, same shape, same rank.

    Attributes:
        kind: their role in the layer, such as ``q_proj``.
        modules: number of modules.
        in_features, out_features, rank: sizes of each module.
        rows: number of sub-vectors of all modules.
        vectors: number of different vectors of the bank that they select.
        largest_weight: mean of their sub-vectors' largest admixture weights.
    """

    kind: str
    modules: int
    in_features: int
    out_features: int
    rank: int
    rows: int
    vectors: int
    largest_weight: float


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width.

    Attributes:
        edges: edges of the bins, one more than there are bins.
        counts: number of values in each bin. A value on an upper edge is in the next bin, if there
            is one.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """Sizes in bytes.

    Attributes:
        bank, indices, weights, tensors: the parts of the packed file.
        file: the whole packed file, with header and padding, and with the bank if it is embedded.
        logits: a float32 checkpoint of the same adapter with its bank and logits.
        lora: the same factors as float32 LoRA.
        external_bank: whether the bank is a separate file.
    """

    bank: int
    indices: int
    weights: int
    tensors: int
    file: int
    logits: int
    lora: int
    external_bank: bool = False

    @property
    def all_files(self) -> int:
        """Size of the packed file and of its external bank, if it has one."""
        return self.file + self.bank * self.external_bank

    @property
    def rest(self) -> int:
        """Size of header and padding."""
        return self.all_files - self.bank - self.indices - self.weights - self.tensors


@dataclass(frozen=True)
class Summary:
    """An adapter in numbers.

    Attributes:
        sizes: sizes in bytes.
        balance: how evenly the bank is used.
        usage: histogram of how often vectors are selected.
        largest_weights: histogram of the sub-vectors' largest admixture weights, from 1/k to 1.
        mean_largest_weight: mean of the largest admixture weights.
        groups: the modules by kind, in the model's order.
    """

    sizes: Sizes
    balance: Balance
    usage: Histogram
    largest_weights: Histogram
    mean_largest_weight: float
    groups: tuple[Group, ...]


def summarize(adapter: Adapter, file_length: int, *, external_bank: bool = False) -> Summary:
    """Return the summary of an adapter whose packed file has `file_length` bytes.

    With `external_bank`, `file_length` does not include the bank.
    """
    extras = sum(tensor.data.nbytes for tensor in adapter.tensors.values())
    weights = largest_weights(adapter)
    least = 1 / adapter.k if adapter.k > 1 else 0  # for k = 1 all weights are 1
    found, edges = np.histogram(weights, _WEIGHT_BINS, (least, 1))
    return Summary(
        sizes=Sizes(
            bank=adapter.bank.nbytes,
            indices=adapter.indices.nbytes,
            weights=adapter.weights.nbytes,
            tensors=extras,
            file=file_length,
            logits=4 * adapter.N * adapter.h + adapter.bank.nbytes + extras,
            lora=4 * adapter.N * adapter.b + extras,
            external_bank=external_bank,
        ),
        balance=balance(adapter),
        usage=_usage(adapter),
        largest_weights=Histogram(tuple(edges.tolist()), tuple(found.tolist())),
        mean_largest_weight=float(weights.mean(dtype=np.float64)),
        groups=_groups(adapter, weights),
    )


def _usage(adapter: Adapter) -> Histogram:
    counts = usage(adapter)
    low, high = int(counts.min()), int(counts.max())
    width = max(1, -(-(high - low + 1) // _USAGE_BINS))
    edges = np.arange(low, high + width + 1, width)
    found = np.bincount((counts - low) // width, minlength=len(edges) - 1)
    return Histogram(tuple(edges.tolist()), tuple(found.tolist()))


def _groups(adapter: Adapter, largest: NDArray[np.float32]) -> tuple[Group, ...]:
    found = positions(module.name for module in adapter)
    members: dict[tuple[str, int, int, int], list[Module]] = {}
    for name in reading_order(found):
        m = adapter[name]
        members.setdefault((found[name].kind, m.in_features, m.out_features, m.rank), []).append(m)
    return tuple(_group(adapter, largest, kind, modules) for (kind, *_), modules in members.items())


def _group(
    adapter: Adapter, largest: NDArray[np.float32], kind: str, modules: list[Module]
) -> Group:
    """Return the group of a kind's modules.

    Rows are processed module by module, because a table of kinds × vectors may be far larger than
    the file.
    """
    slices = [adapter.rows(module.name) for module in modules]
    count = sum(rows.stop - rows.start for rows in slices)
    selected: set[int] = set()
    for rows in slices:
        indices = adapter.indices[rows]
        selected.update((np.unique(indices) if indices.size > _FEW else indices.ravel()).tolist())
    total = sum(float(largest[rows].sum(dtype=np.float64)) for rows in slices)
    m = modules[0]
    return Group(
        kind,
        len(modules),
        m.in_features,
        m.out_features,
        m.rank,
        count,
        len(selected),
        total / count,
    )
