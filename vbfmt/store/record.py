"""The small JSON records of a store: names, leases, marks and the root.

Anyone who may write to the store may have written them, so size, types and ranges are checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vbfmt._format import strict_json

LONGEST = 4096
"""Largest size of a record in bytes. The record of a name takes about 300."""

CLOCKS_APART = 24 * 3600.0
"""Seconds that the clocks of two hosts may differ."""


def fields(content: bytes) -> dict[str, Any]:
    """Return the fields of a record.

    Raises:
        ValueError: the record is longer than `LONGEST`, or is not a JSON object.
    """
    if len(content) > LONGEST:
        raise ValueError(f"more than {LONGEST} bytes")
    return strict_json.parse_object(content.decode())


def time_in(record: Mapping[str, Any], key: str, *, latest: float) -> float:
    """Return a field that is a time, in seconds since 1970.

    Raises:
        KeyError: there is no such field.
        ValueError: the field is not a number from 0 to `latest`.
    """
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} is not a number")
    if not 0 <= value <= latest:  # false for NaN, too
        raise ValueError(f"{key} is out of range")
    return float(value)
