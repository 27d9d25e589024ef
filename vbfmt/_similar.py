"""Find names that are similar to a misspelt name, for hints in messages, at a bounded cost.

The time of ``difflib`` grows with the cube of a name's length, and names come from untrusted files.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nlargest
from itertools import islice

_COMPARED = 5000
"""Largest number of names that are considered."""
_LENGTH = 80
"""Number of characters that are compared. They are the last ones, in which names in a model
differ."""
_CLOSE = 12
"""Number of names that are compared completely."""


def nearest(name: str, names: Iterable[str], count: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return up to `count` of `names` that are similar to `name`, the most similar first.

    Args:
        cutoff: smallest similarity, from 0 to 1, as in ``difflib``.
    """
    from difflib import get_close_matches

    wanted = name[-_LENGTH:]
    pairs = _pairs(wanted)
    endings = {known[-_LENGTH:]: known for known in islice(names, _COMPARED)}
    close = nlargest(_CLOSE, endings, key=lambda end: _overlap(pairs, _pairs(end)))
    return [endings[end] for end in get_close_matches(wanted, close, n=count, cutoff=cutoff)]


def _pairs(text: str) -> set[str]:
    return {text[at : at + 2] for at in range(max(1, len(text) - 1))}


def _overlap(one: set[str], other: set[str]) -> float:
    return 2 * len(one & other) / (len(one) + len(other))
