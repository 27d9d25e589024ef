"""Config files: read as strict JSON of an object, or one clear error; written one way."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from vbfmt import storage, strict_json
from vbfmt.errors import SourceError


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object.

    Raises:
        SourceError: not a JSON object in UTF-8.
        StorageError: it cannot be read.
    """
    content = bytes(storage.read(path, mmap=False))
    try:
        return strict_json.parse_object(content.decode())
    except ValueError as error:
        raise SourceError("not a JSON object", file=path, found=error) from None


def text(value: Mapping[str, Any]) -> bytes:
    """The bytes of such a file, as they are written: sorted, indented, in UTF-8."""
    return (json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()
