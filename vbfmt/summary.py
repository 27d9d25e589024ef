"""What an adapter weighs and what it adapts, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from vbfmt.adapter import Adapter
from vbfmt.module import Module


@dataclass(frozen=True)
class Group:
    """Modules of one kind: same last name component, same shape, same rank.

    Attributes:
        kind: the last component of their names, ``q_proj``.
        modules: how many.
        in_features, out_features, rank: of each.
        rows: sub-vectors of all of them.
    """

    kind: str
    modules: int
    in_features: int
    out_features: int
    rank: int
    rows: int


@dataclass(frozen=True)
class Summary:
    """Sizes in bytes.

    Attributes:
        bank, indices, weights, tensors: the parts of the packed file.
        file: the whole of it, header and padding included.
        logits: a float32 checkpoint of the same adapter with its logits (bank included).
        lora: its factors as float32 LoRA.
        groups: the modules by kind, in order of appearance.
    """

    bank: int
    indices: int
    weights: int
    tensors: int
    file: int
    logits: int
    lora: int
    groups: tuple[Group, ...]


def summarize(adapter: Adapter, file_length: int) -> Summary:
    """The summary of an adapter whose packed file has `file_length` bytes."""
    extras = sum(tensor.data.nbytes for tensor in adapter.tensors.values())
    return Summary(
        bank=adapter.bank.nbytes,
        indices=adapter.indices.nbytes,
        weights=adapter.weights.nbytes,
        tensors=extras,
        file=file_length,
        logits=4 * adapter.N * adapter.h + adapter.bank.nbytes + extras,
        lora=4 * adapter.N * adapter.b + extras,
        groups=_groups(adapter),
    )


def _groups(adapter: Adapter) -> tuple[Group, ...]:
    members: dict[tuple[str, int, int, int], list[Module]] = {}
    for m in adapter:
        key = (m.name.rpartition(".")[2], m.in_features, m.out_features, m.rank)
        members.setdefault(key, []).append(m)
    return tuple(
        Group(kind, len(found), i, o, rank, sum(m.rows(adapter.b) for m in found))
        for (kind, i, o, rank), found in members.items()
    )
