"""JSON objects from strangers: what is ambiguous or made to hurt is refused."""

from __future__ import annotations

import json
import math
from typing import Any

LONGEST_INTEGER = 1000
"""Digits: reading a number takes time that grows with the square of them."""

DEEPEST = 64
"""Levels of nesting, the outermost object being the first."""


def parse_object(text: str, *, any_number: bool = False, sizes: bool = False) -> dict[str, Any]:
    """The object that `text` says.

    Args:
        any_number: take numbers beyond the largest float too, as infinity.
        sizes: every integer is a size: refuse those with a sign, as ``-0``.

    Raises:
        ValueError: not JSON as RFC 8259 has it (NaN, say), not an object, a key twice, an integer
            too long, nesting too deep, a number too large.
    """
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_unsigned_integer if sizes else _short_integer,
            parse_float=float if any_number else _finite,
            object_pairs_hook=_without_duplicates,
        )
    except RecursionError:
        raise ValueError("nesting is too deep") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    if not _depth_is_at_most(value, DEEPEST):
        raise ValueError("nesting is too deep")
    return value


def is_object(text: str) -> bool:
    """Whether `parse_object` takes it, numbers of any size included."""
    try:
        parse_object(text, any_number=True)
    except ValueError:
        return False
    return True


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _short_integer(digits: str) -> int:
    if len(digits.lstrip("-")) > LONGEST_INTEGER:
        raise ValueError("an integer of too many digits")
    return int(digits)


def _unsigned_integer(digits: str) -> int:
    """JSON knows ``-0``: to Python it is 0, to others (safetensors) no whole number."""
    if digits.startswith("-"):
        raise ValueError(f"{digits[:20]} is not a size")
    return _short_integer(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is more than a float can say")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key twice")
    return result


def _depth_is_at_most(value: object, limit: int) -> bool:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return limit > 0 and all(_depth_is_at_most(item, limit - 1) for item in inner)
    return True
