"""Read and write JSON files with one object, such as configs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vbfmt._files import PathLike, storage
from vbfmt._format import strict_json
from vbfmt.errors import SourceError, TargetError

LONGEST = 67_108_864
"""Largest size in bytes. The index of a model with a hundred thousand tensors takes a seventh of
it."""

_WRONG = "not a JSON object"


def read(path: PathLike) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        SourceError: the file is not a JSON object in UTF-8, or is longer than `LONGEST`.
        StorageError: the file cannot be read.
    """
    data = content(path)
    try:
        return strict_json.parse_object(data.decode())
    except ValueError as error:
        raise refusal(path, error) from None


def refusal(path: PathLike, error: Exception) -> SourceError:
    """Return the error for a file that could not be parsed because of `error`."""
    if not isinstance(error, json.JSONDecodeError):
        return SourceError(_WRONG, file=path, found=error)
    if not error.doc:
        return SourceError(_WRONG, file=path, found="an empty file")
    place = f"line {error.lineno}, column {error.colno}"
    reason = error.msg[:1].lower() + error.msg[1:]
    return SourceError(_WRONG, file=path, part=f"{place}: {reason}")


def content(path: PathLike) -> bytes:
    """Return the bytes of a JSON file, unless it is too long.

    Raises:
        SourceError: the file is longer than `LONGEST`.
        StorageError: the file cannot be read.
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
    """Return an object as the bytes of a JSON file, in UTF-8, sorted and indented.

    Raises:
        TargetError: a number is not finite, which JSON cannot express.
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
    """Return indented JSON as UTF-8 bytes that end with a line feed.

    Characters that are not printable are escaped: some of them control terminals, U+202E reverses
    the text after it, and a lone surrogate cannot be encoded in UTF-8.
    """
    lines = written.split("\n")
    shown = [line if line.isprintable() else _escaped(line) for line in lines]
    return ("\n".join(shown) + "\n").encode()


def _escaped(line: str) -> str:
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)
