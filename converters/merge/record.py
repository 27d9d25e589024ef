"""Record which adapters were merged into a model, in a file and in the metadata of the shards.

A later merge reads the record, so that no adapter is merged twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vbfmt._files import json_file
from vbfmt.converters.merge.base import Base, json_object
from vbfmt.converters.merge.paths import tree
from vbfmt.errors import SourceError

NAME = "vbfmt_merge.json"
KEY = "vbfmt.merged"
"""Key in a safetensors file's metadata; the value is a JSON list of digests."""


@dataclass(frozen=True)
class Merged:
    """An adapter that was merged.

    Attributes:
        digest: the digest of its packed form, ``sha256:…``.
        weight: the factor by which its ΔW was multiplied.
        base_model, base_revision: the model that it was trained on, as the adapter records it.
    """

    digest: str
    weight: float
    base_model: str | None
    base_revision: str | None


def text(merged: Sequence[Merged], base: Base, files: Collection[str]) -> bytes:
    """Return the content of the record's file.

    It contains no time and no host name, so that the same merge always gives the same bytes.

    Args:
        merged: the adapters of this merge. They are listed after those in the base's own record.
        base: the base model.
        files: names of all files of the output.
    """
    adapters = [*earlier_adapters(base), *map(asdict, merged)]
    record = {"adapters": adapters, "files": sorted(files)}
    return json_file.encoded(json.dumps(record, indent=2, ensure_ascii=False))


def metadata(merged: Sequence[Merged], base: Base) -> dict[str, str]:
    """Return the record as metadata of the output's safetensors files."""
    return {KEY: json.dumps([*earlier_digests(base), *(each.digest for each in merged)])}


def earlier_adapters(base: Base) -> list[Any]:
    """Return the adapters in the base's own record, or none if the base is not the output of a
    merge.

    Raises:
        SourceError: the record cannot be read, so it is unknown which adapters the base contains.
    """
    if NAME not in base.side_files:
        return []
    path = os.path.join(base.path, NAME)
    adapters = json_object(path).get("adapters")
    if not isinstance(adapters, list) or not all(map(_has_digest, adapters)):
        raise _unreadable(path, "adapters", "a list of objects, each with a digest")
    return adapters


def earlier_digests(base: Base) -> list[str]:
    """Return the digests of all adapters that were merged into the base, in order.

    Raises:
        SourceError: the record in a shard's metadata or in the folder cannot be read.
    """
    found: dict[str, None] = {}
    for shard in base.shards:
        try:
            digests = json.loads(shard.metadata.get(KEY, "[]"))
        except (ValueError, RecursionError):
            digests = None
        if not isinstance(digests, list) or not all(isinstance(each, str) for each in digests):
            path = os.path.join(base.path, shard.name)
            raise _unreadable(path, f"__metadata__, {KEY}", "a JSON list of digests")
        found.update(dict.fromkeys(digests))
    found.update(dict.fromkeys(adapter["digest"] for adapter in earlier_adapters(base)))
    return list(found)


def _has_digest(adapter: object) -> bool:
    return isinstance(adapter, dict) and isinstance(adapter.get("digest"), str)


def _unreadable(path: str, part: str, expected: str) -> SourceError:
    return SourceError(
        "the record of merged adapters cannot be read",
        file=path,
        part=part,
        expected=expected,
        advice="fetch or merge the model again",
    )


def unrecorded_in(folder: str) -> str | None:
    """Return the path of something in a folder that the folder's record does not list.

    This is a file that the record does not name, an empty folder, or a link.

    Returns:
        The path, or None if there is nothing. If the record is missing or unreadable, return a
        phrase that says so.
    """
    path = os.path.join(folder, NAME)
    if not os.path.isfile(path):
        return f"no {NAME}"
    try:
        files = json_object(path).get("files")
    except SourceError:
        files = None
    if not isinstance(files, list):
        return f"an unreadable {NAME}"
    known = {os.path.normpath(str(name)) for name in files} | {NAME}
    for entry in tree(folder):
        empty = entry.folder and not os.listdir(os.path.join(folder, entry.path))
        if entry.link or empty or (not entry.folder and entry.path not in known):
            return entry.path
    return None
