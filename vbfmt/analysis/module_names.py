"""Layers and kinds of modules, read from their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbfmt.adapter import Adapter

OUTSIDE = "outside the layers"
"""What modules that are in no numbered layer are called."""


@dataclass(frozen=True)
class Position:
    """The layer and kind of a module.

    Attributes:
        layer: the first whole number among the components of its name, if there is one.
        kind: what it is in its layer, ``q_proj`` or ``attention.output.dense``: the same for
            modules whose names differ by numbers alone, and as short as tells kinds apart.
    """

    layer: int | None
    kind: str


def positions(names: Iterable[str]) -> dict[str, Position]:
    """Return the position of every module, by name."""
    patterns = {name: _pattern(name) for name in names}
    kinds = _shortest_ends(set(patterns.values()))
    return {name: Position(_layer(name), kinds[pattern]) for name, pattern in patterns.items()}


def reading_order(adapter: Adapter) -> list[str]:
    """The modules' names from the first layer to the last: 2 before 10, which a file has not."""
    found = positions(module.name for module in adapter)
    return sorted(found, key=lambda name: (found[name].layer is None, found[name].layer or 0, name))


def thirds(adapter: Adapter) -> tuple[list[str], NDArray[np.intp]]:
    """The modules by depth, as in the paper's Fig. 6: first, middle and last third of the layers.

    Returns:
        names of the groups that have modules, and (M,) which group each module is in. Modules
        outside the numbered layers are a group of their own.
    """
    found = positions(module.name for module in adapter)
    layers = sorted({each.layer for each in found.values() if each.layer is not None})
    parts = [part.tolist() for part in np.array_split(np.array(layers, dtype=int), 3) if part.size]
    names = [_span(part) for part in parts]
    group = {layer: position for position, part in enumerate(parts) for layer in part}
    chosen = [len(parts) if each.layer is None else group[each.layer] for each in found.values()]
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
    found = positions(module.name for module in adapter)
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
    and attention.output.dense); or an end that reaches back over numbers.

    In the order of their components from the last to the first, those that share the longest end
    stand side by side: the cost grows with the length of the names, not with its square.
    """
    backwards = sorted("\0".join(reversed(pattern.split("."))) for pattern in patterns)
    tails = Counter(map(_tail, patterns))
    labels = {}
    shared = 0
    here: list[str] = []
    for text in [*backwards, None]:
        after = [] if text is None else text.split("\0")
        shared_after = _shared(here, after)
        length = max(shared, shared_after) + 1
        if here:
            pattern = ".".join(reversed(here))
            own = ".".join(reversed(here[:length])) if length <= len(here) else None
            labels[pattern] = _label(pattern, own, tails)
        here, shared = after, shared_after
    return labels


def _label(pattern: str, end: str | None, tails: Mapping[str, int]) -> str:
    """The label of a pattern with this end of its own, if it has one."""
    tail = _tail(pattern)
    if end is not None and len(end) <= len(tail):
        return end
    if tail and tails[tail] == 1:
        return tail
    return end if end is not None else pattern


def _shared(one: list[str], other: list[str]) -> int:
    """How many components two names begin with alike."""
    count = 0
    for here, there in zip(one, other, strict=False):
        if here != there:
            break
        count += 1
    return count


def _tail(pattern: str) -> str:
    return pattern.rpartition("*.")[2] if "*" in pattern else pattern


def _span(layers: list[int]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    return f"layers {layers[0]}–{layers[-1]}"
