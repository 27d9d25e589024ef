"""What was merged into a model: kept in its folder and in the metadata of its weights."""

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
"""In the metadata of a safetensors file: a JSON list of digests."""


@dataclass(frozen=True)
class Merged:
    """An adapter that was merged.

    Attributes:
        digest: ``sha256:…`` of its packed form.
        weight: what its ΔW was multiplied by.
        base_model, base_revision: what it was trained on, as it says.
    """

    digest: str
    weight: float
    base_model: str | None
    base_revision: str | None


def text(merged: Sequence[Merged], base: Base, files: Collection[str]) -> bytes:
    """The record's content: no time, no machine, so that the same merge gives the same bytes.

    Args:
        merged: the adapters of this merge; those that the base's own record names come before.
        files: all files of the output.
    """
    adapters = [*earlier_adapters(base), *map(asdict, merged)]
    record = {"adapters": adapters, "files": sorted(files)}
    return json_file.encoded(json.dumps(record, indent=2, ensure_ascii=False))


def metadata(merged: Sequence[Merged], base: Base) -> dict[str, str]:
    """What the safetensors files of the output carry."""
    return {KEY: json.dumps([*earlier_digests(base), *(each.digest for each in merged)])}


def earlier_adapters(base: Base) -> list[Any]:
    """What the base's own record says, if it is the output of a merge."""
    path = os.path.join(base.path, NAME)
    adapters = json_object(path).get("adapters") if NAME in base.side_files else None
    return adapters if isinstance(adapters, list) else []


def earlier_digests(base: Base) -> list[str]:
    """The digests of all adapters that were merged into the base, in order."""
    found: dict[str, None] = {}
    for shard in base.shards:
        try:
            found.update(dict.fromkeys(map(str, json.loads(shard.metadata.get(KEY, "[]")))))
        except (ValueError, TypeError, RecursionError):
            raise SourceError(
                "unreadable record of merges",
                file=os.path.join(base.path, shard.name),
                part=f"__metadata__, {KEY}",
            ) from None
    for adapter in earlier_adapters(base):
        if isinstance(adapter, dict) and isinstance(adapter.get("digest"), str):
            found[adapter["digest"]] = None
    return list(found)


def stranger_in(folder: str) -> str | None:
    """A file, folder or link that no merge has written there, or None where there is no such thing.

    A folder without a record is a stranger altogether.
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
