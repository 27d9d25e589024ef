"""Config files: read as strict JSON of an object, or one clear error; written one way."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from vbfmt import storage, strict_json
from vbfmt.errors import SourceError, TargetError


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object.

    Raises:
        SourceError: not a JSON object.
        StorageError: it cannot be read.
    """
    text = bytes(storage.read(path, mmap=False)).decode(errors="replace")
    try:
        return strict_json.parse_object(text)
    except ValueError as error:
        raise SourceError("not a JSON object", file=path, found=error) from None


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
    # Half a surrogate pair becomes JSON's own escape.
    return f"{written}\n".encode(errors="backslashreplace")
