"""Derive the layer and the kind of modules from their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

OUTSIDE = "outside the layers"
"""The label of modules that are in no numbered layer."""


class Position(NamedTuple):
    """The layer and kind of a module.

    Attributes:
        layer: the first integer among the components of its name, or None.
        kind: its role in the layer, such as ``q_proj`` or ``attention.output.dense``, which is the
            end of the module's name. Modules whose names differ only in numbers have the same kind.
    """

    layer: int | None
    kind: str


def positions(names: Iterable[str]) -> dict[str, Position]:
    """Return the position of every module, by name."""
    numbers = {name: _NUMBER.search(name) for name in names}
    patterns = {
        name: name if number is None else _NUMBER.sub("*", name) for name, number in numbers.items()
    }
    kinds = _shortest_ends(set(patterns.values()))
    return {
        name: Position(None if number is None else int(number[0]), kinds[patterns[name]])
        for name, number in numbers.items()
    }


def reading_order(found: Mapping[str, Position]) -> list[str]:
    """Return the modules' names from the first layer to the last, with layer 2 before 10.

    Args:
        found: `positions` of an adapter's modules, in the adapter's order.
    """
    names = list(found)
    return [names[number] for number in np.argsort(layers(found), kind="stable").tolist()]


def layers(found: Mapping[str, Position]) -> NDArray[np.float64]:
    """Return the layer of every module, infinity if it is outside the layers: (M,) float64."""
    outside = float("inf")
    numbers = [outside if each.layer is None else each.layer for each in found.values()]
    return np.array(numbers, dtype=np.float64)


def thirds(found: Mapping[str, Position]) -> tuple[list[str], NDArray[np.intp]]:
    """Group the modules into the first, middle and last third of the layers (paper, Fig. 6).

    Modules outside the numbered layers form a separate group.

    Args:
        found: as in `reading_order`.

    Returns:
        The names of the groups that have modules, and the group of each module, (M,) intp.
    """
    numbers = sorted({each.layer for each in found.values() if each.layer is not None})
    parts = [part.tolist() for part in np.array_split(np.array(numbers, dtype=int), 3) if part.size]
    names = [_span(part) for part in parts]
    group = {layer: position for position, part in enumerate(parts) for layer in part}
    chosen = [len(parts) if each.layer is None else group[each.layer] for each in found.values()]
    if len(parts) in chosen:
        names.append(OUTSIDE)
    return names, np.array(chosen, dtype=np.intp)


def kinds(found: Mapping[str, Position], most: int) -> tuple[list[str], NDArray[np.intp]]:
    """Group the modules by kind, in the order of the model.

    Args:
        found: as in `reading_order`.
        most: largest number of groups. If there are more kinds, those with the fewest modules form
            one group, "others".

    Returns:
        The names of the groups, and the group of each module, (M,) intp.
    """
    counts = Counter(found[name].kind for name in reading_order(found))
    names = list(counts)
    if len(names) > most:
        kept = {kind for kind, _ in counts.most_common(most - 1)}
        names = [*(name for name in names if name in kept), "others"]
    position = {name: number for number, name in enumerate(names)}
    last = len(names) - 1
    chosen = [position.get(each.kind, last) for each in found.values()]
    return names, np.array(chosen, dtype=np.intp)


_NUMBER = re.compile(r"(?<![^.])[0-9]{1,9}(?![^.])")
"""Matches an integer as a component of a name."""


def _shortest_ends(patterns: set[str]) -> dict[str, str]:
    """Return a different label for each pattern.

    The label is the shortest unique end of the pattern, that is, the shortest end that no other
    pattern has, if it begins after the pattern's last number. Otherwise, it is everything after the
    last number, if this is unique (BERT's output.dense, which is also an end of
    attention.output.dense). Otherwise, it is the shortest unique end, which then contains numbers.

    The patterns are sorted by their components from the last to the first, so that patterns with
    the longest common end are neighbours. So the cost is linear in the length of the names.
    """
    backwards = sorted("\0".join(reversed(pattern.split("."))) for pattern in patterns)
    tails = Counter(map(_tail, patterns))
    labels = {}
    common = 0
    here: list[str] = []
    for text in [*backwards, None]:
        after = [] if text is None else text.split("\0")
        next_common = shared([here, after])
        length = max(common, next_common) + 1
        if here:
            pattern = ".".join(reversed(here))
            own = ".".join(reversed(here[:length])) if length <= len(here) else None
            labels[pattern] = _label(pattern, own, tails)
        here, common = after, next_common
    return labels


def _label(pattern: str, end: str | None, tails: Mapping[str, int]) -> str:
    """Return the label of a pattern; `end` is its shortest unique end, if it has one."""
    tail = _tail(pattern)
    if end is not None and len(end) <= len(tail):
        return end
    if tail and tails[tail] == 1:
        return tail
    return end if end is not None else pattern


def shared(texts: Sequence[Sequence[str]]) -> int:
    """Return how many leading components (or, of strings, characters) all of these share."""
    alike = (len(set(each)) == 1 for each in zip(*texts, strict=False))
    return sum(1 for _ in takewhile(bool, alike))


def _tail(pattern: str) -> str:
    return pattern.rpartition("*.")[2] if "*" in pattern else pattern


def _span(layers: list[int]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    return f"layers {layers[0]}–{layers[-1]}"
