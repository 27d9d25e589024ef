"""Config files: read as strict JSON of an object, or one clear error; written one way."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from vbfmt._files import storage
from vbfmt._format import strict_json
from vbfmt.errors import SourceError, TargetError

LONGEST = 67_108_864
"""Bytes: the index of a model with a hundred thousand tensors takes a seventh of it."""


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object.

    Raises:
        SourceError: not a JSON object in UTF-8, or longer than `LONGEST`.
        StorageError: it cannot be read.
    """
    data = content(path)
    try:
        return strict_json.parse_object(data.decode())
    except ValueError as error:
        raise SourceError("not a JSON object", file=path, found=error) from None


def content(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a JSON file, which is not read if it is too long to be a config.

    Raises:
        SourceError: longer than `LONGEST`.
        StorageError: it cannot be read.
    """
    data = storage.read(path, mmap=True)
    if len(data) > LONGEST:
        raise SourceError(
            "too long for a JSON file",
            file=path,
            found=f"{len(data)} bytes",
            expected=f"at most {LONGEST}",
        )
    return bytes(data)


def text(value: Mapping[str, Any]) -> bytes:
    """The bytes of such a file, as they are written: sorted, indented, in UTF-8.

    Raises:
        TargetError: a number that is not finite, which JSON cannot say.
    """
    try:
        written = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True, allow_nan=False)
    except ValueError:
        raise TargetError(
            "the adapter's config holds a number that no program could read back",
            found="infinity",
            expected="finite numbers",
        ) from None
    return encoded(written)


def encoded(written: str) -> bytes:
    """Return indented JSON as the bytes of a file: a last line feed, and JSON's own escapes for
    what could act on a terminal or turn the order of the text around (U+202E), and for half a
    surrogate pair, which has no UTF-8."""
    lines = written.split("\n")
    shown = [line if line.isprintable() else _escaped(line) for line in lines]
    return ("\n".join(shown) + "\n").encode()


def _escaped(line: str) -> str:
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)
