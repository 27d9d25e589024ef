"""Parse JSON objects from untrusted files strictly, without ambiguity and in bounded time."""

from __future__ import annotations

import json
import math
from typing import Any

LONGEST_INTEGER = 1000
"""Largest number of digits of an integer. The time to parse one grows with the square of this
number."""

DEEPEST = 64
"""Largest number of levels of nesting, including the outermost object."""


def parse_object(text: str, *, any_number: bool = False, sizes: bool = False) -> dict[str, Any]:
    """Return the JSON object in `text`.

    Args:
        any_number: accept numbers above the largest float, as infinity.
        sizes: treat every integer as a size, and refuse a sign, even in ``-0``.

    Raises:
        ValueError: the text is not JSON (RFC 8259, without NaN) or not an object, or it has a
            duplicate key, an integer with too many digits, too deep nesting or a number that is too
            large.
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
    """Return whether `text` is a JSON object, with numbers of any size."""
    try:
        parse_object(text, any_number=True)
    except ValueError:
        return False
    return True


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _short_integer(digits: str) -> int:
    if len(digits.lstrip("-")) > LONGEST_INTEGER:
        raise ValueError("an integer with too many digits")
    return int(digits)


def _unsigned_integer(digits: str) -> int:
    """Refuse a sign: Python reads ``-0`` as 0, but safetensors refuses it."""
    if digits.startswith("-"):
        raise ValueError(f"{digits[:20]} is not a size")
    return _short_integer(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large for a float")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a duplicate key")
    return result


def _depth_is_at_most(value: object, limit: int) -> bool:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return limit > 0 and all(_depth_is_at_most(item, limit - 1) for item in inner)
    return True
