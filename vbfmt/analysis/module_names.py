"""Where in a model modules stand, read from their names: which layer, and which kind of module."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbfmt.adapter import Adapter

OUTSIDE = "outside the layers"
"""What modules that are in no numbered layer are called."""


@dataclass(frozen=True)
class Place:
    """Where a module stands.

    Attributes:
        layer: the first whole number among the components of its name, if there is one.
        kind: what it is in its layer, ``q_proj`` or ``attention.output.dense``: the same for
            modules whose names differ by numbers alone, and as short as tells kinds apart.
    """

    layer: int | None
    kind: str


def places(names: Iterable[str]) -> dict[str, Place]:
    """The place of every module, by name."""
    patterns = {name: _pattern(name) for name in names}
    kinds = _shortest_ends(set(patterns.values()))
    return {name: Place(_layer(name), kinds[pattern]) for name, pattern in patterns.items()}


def reading_order(adapter: Adapter) -> list[str]:
    """The modules' names from the first layer to the last: 2 before 10, which a file has not."""
    found = places(module.name for module in adapter)
    return sorted(found, key=lambda name: (found[name].layer is None, found[name].layer or 0, name))


def thirds(adapter: Adapter) -> tuple[list[str], NDArray[np.intp]]:
    """The modules by depth, as in the paper's Fig. 6: first, middle and last third of the layers.

    Returns:
        names of the groups that have modules, and (M,) which group each module is in. Modules
        outside the numbered layers are a group of their own.
    """
    found = places(module.name for module in adapter)
    layers = sorted({place.layer for place in found.values() if place.layer is not None})
    parts = [part.tolist() for part in np.array_split(np.array(layers, dtype=int), 3) if part.size]
    names = [_span(part) for part in parts]
    group = {layer: position for position, part in enumerate(parts) for layer in part}
    chosen = [len(parts) if place.layer is None else group[place.layer] for place in found.values()]
    if len(parts) in chosen:
        names.append(OUTSIDE)
    return names, np.array(chosen, dtype=np.intp)


def kinds(adapter: Adapter, most: int) -> tuple[list[str], NDArray[np.intp]]:
    """The modules by kind, in order of appearance in the model.

    Args:
        most: kinds to tell apart; of more, those with the fewest modules become one, "others".

    Returns:
        names of the groups, and (M,) which group each module is in.
    """
    found = places(module.name for module in adapter)
    counts: dict[str, int] = {}
    for name in reading_order(adapter):
        counts[found[name].kind] = counts.get(found[name].kind, 0) + 1
    names = list(counts)
    if len(names) > most:
        kept = set(sorted(counts, key=lambda kind: -counts[kind])[: most - 1])
        names = [*(name for name in names if name in kept), "others"]
    position = {name: number for number, name in enumerate(names)}
    last = len(names) - 1
    return names, np.array([position.get(found[m.name].kind, last) for m in adapter], dtype=np.intp)


def _layer(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if _is_number(part)), None)


def _pattern(name: str) -> str:
    return ".".join("*" if _is_number(part) else part for part in name.split("."))


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) <= 9


def _shortest_ends(patterns: set[str]) -> dict[str, str]:
    """A short label for each pattern, different for all: an end of it that no other pattern has;
    or all that follows its last number, where only longer names end likewise (BERT's output.dense
    and attention.output.dense); or an end that reaches back over numbers."""
    owners: dict[str, int] = {}
    tails: dict[str, int] = {}
    for pattern in patterns:
        tail = _tail(pattern)
        tails[tail] = tails.get(tail, 0) + 1
        for end in _ends(pattern):
            owners[end] = owners.get(end, 0) + 1
    labels = {}
    for pattern in patterns:
        tail = _tail(pattern)
        near = [end for end in _ends(tail) if owners[end] == 1] if tail else []
        whole = [tail] if tail and tails[tail] == 1 else []
        far = [end for end in _ends(pattern) if owners[end] == 1]
        labels[pattern] = [*near, *whole, *far, pattern][0]
    return labels


def _tail(pattern: str) -> str:
    return pattern.rpartition("*.")[2] if "*" in pattern else pattern


def _ends(pattern: str) -> list[str]:
    parts = pattern.split(".")
    return [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]


def _span(layers: list[int]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    return f"layers {layers[0]}–{layers[-1]}"
