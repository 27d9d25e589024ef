"""A config file of others: strict JSON of an object, or one clear error."""

from __future__ import annotations

import json
import os
from typing import Any

from vbfmt import storage
from vbfmt.errors import SourceError
from vbfmt.rules import is_json_object


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object.

    Raises:
        SourceError: not a JSON object.
        StorageError: it cannot be read.
    """
    text = bytes(storage.read(path, mmap=False)).decode(errors="replace")
    if not is_json_object(text):
        raise SourceError("not a JSON object", file=path)
    value: dict[str, Any] = json.loads(text)
    return value
