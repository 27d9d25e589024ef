"""Read a base model's folder, as transformers saves it: weights in one file or in shards, a config,
and other files."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vbfmt._files import PathLike, json_file, unchanged
from vbfmt.converters._files import pickle, safetensors
from vbfmt.converters.merge import side_files
from vbfmt.converters.merge.paths import Folder
from vbfmt.errors import SourceError
from vbfmt.tensors import Tensor

CONFIG = "config.json"
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"

_WEIGHTS = (SAFETENSORS, SAFETENSORS + INDEX, PICKLE, PICKLE + INDEX)
"""Names of weight files, in the order in which transformers looks for them."""

_NAMED_WEIGHTS = "transformers_weights"
"""Config key that makes transformers 5 load other weight files."""


@dataclass(frozen=True)
class Shard:
    """One file of weights.

    Attributes:
        name: the file's name.
        tensors: its memory-mapped tensors, by name.
        metadata: the file's metadata.
    """

    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Base:
    """A base model.

    Attributes:
        path: the folder.
        shards: the weight files, at least one.
        index: the metadata in the index of the shards; None if there is no index.
        config: the content of ``config.json``.
        side_files: paths within the folder of the other files that a merge copies.
        left_out: paths within the folder that a merge does not copy: other formats of the weights,
            and everything except regular files.
        home: the folder that links must stay in; None if they may lead anywhere.
        stamps: sizes and times of its config, index and weight files before they were read.
    """

    path: str
    shards: tuple[Shard, ...]
    index: Mapping[str, Any] | None
    config: Mapping[str, Any]
    side_files: tuple[str, ...]
    left_out: tuple[str, ...]
    home: str | None = None
    stamps: unchanged.Stamps = field(default_factory=dict)

    def require_unchanged(self) -> None:
        """Check that config, index and weight files are as they were when the base was read.

        Raises:
            StorageError: a file was written, replaced or removed meanwhile.
        """
        unchanged.require(self.stamps, "the base")

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors by name."""
        return {name: tensor for shard in self.shards for name, tensor in shard.tensors.items()}

    @cached_property
    def outside_layers(self) -> Mapping[tuple[int, ...], Sequence[str]]:
        """Names of the tensors outside numbered layers, by shape."""
        found: dict[tuple[int, ...], list[str]] = {}
        for name, tensor in self.tensors.items():
            if not in_a_layer(name):
                found.setdefault(tensor.shape, []).append(name)
        return found

    @cached_property
    def _digests(self) -> dict[str, bytes]:
        return {}

    def digest(self, name: str) -> bytes:
        """Return a digest of a tensor's dtype, shape and values.

        The values are read only once. Later calls return the digest from memory.
        """
        if name not in self._digests:
            tensor = self.tensors[name]
            about = hashlib.sha256(repr(tensor).encode())
            about.update(tensor.data.data)
            self._digests[name] = about.digest()
        return self._digests[name]

    @cached_property
    def _equal(self) -> dict[tuple[int, ...], dict[bytes, list[str]]]:
        return {}

    def equal_to(self, name: str) -> Sequence[str]:
        """Return the names of the tensors outside numbered layers that equal the tensor `name`.

        They have the same dtype, shape and values. If `name` itself is outside numbered layers, it
        is among them.
        """
        shape = self.tensors[name].shape
        if shape not in self._equal:
            groups: dict[bytes, list[str]] = {}
            for other in self.outside_layers.get(shape, ()):
                groups.setdefault(self.digest(other), []).append(other)
            self._equal[shape] = groups
        return self._equal[shape].get(self.digest(name), ())


def read(path: PathLike, *, follow_links: bool = False) -> Base:
    """Read a base model. Its weights are memory-mapped and not copied.

    Args:
        path: the model's folder.
        follow_links: also follow links that lead out of the folder. In the Hub's cache, links
            within the repository's cache folder are always followed.

    Raises:
        SourceError: the weights, a shard or a tensor are missing, a tensor is in two shards, the
            config names other weight files, or a link leads out of the folder.
        StorageError: a file cannot be read.
    """
    folder = Folder.of(os.fspath(path), follow_links=follow_links)
    if not os.path.isdir(folder.path):
        found = "a file" if os.path.exists(folder.path) else "nothing"
        raise SourceError(
            "no base model", file=folder.path, found=found, expected="a model's folder"
        )
    weights = next((n for n in _WEIGHTS if folder.has(n)), None)
    if weights is None:
        raise SourceError(
            "no base model",
            file=folder.path,
            found=", ".join(sorted(os.listdir(folder.path))[:5]) or "an empty folder",
            expected=" or ".join(_WEIGHTS),
        )
    stamps = dict(unchanged.stamps(map(folder.file, (CONFIG, weights))))
    settings = _config(folder)
    _require_same_weights(settings, weights, folder)
    index: Mapping[str, Any] | None = None
    if weights.endswith(INDEX):
        index, weight_map = _index(folder.file(weights))
        names = sorted(set(weight_map.values()))
        stamps |= unchanged.stamps(map(folder.file, names))
        shards = tuple(_shard(folder, name) for name in names)
        _require_agreement(shards, weight_map, folder.file(weights))
    else:
        shards = (_shard(folder, weights),)
    others = (path for path in folder.files() if path != weights)
    kept, left_out = side_files.partition(
        folder, others, {shard.name: shard.tensors for shard in shards}
    )
    return Base(
        path=folder.path,
        shards=shards,
        index=index,
        config=settings,
        side_files=kept,
        left_out=left_out,
        home=folder.home,
        stamps=stamps,
    )


def needed(names: Collection[str]) -> list[str]:
    """Return the files of a model that a merge reads or copies, or none if there are no weights.

    For a sharded model, the list contains the index, but not the shards that it names.

    Args:
        names: paths of all files in the model's repository, with slashes.
    """
    weights = next((name for name in _WEIGHTS if name in names), None)
    if weights is None:
        return []
    sides = [
        name for name in names if not name.startswith(".") and not side_files.is_left_out(name)
    ]
    return [weights, *(name for name in sides if name != weights)]


def shards_of(path: PathLike) -> set[str]:
    """Return the shards that a model's index names, or none if the weights are in one file.

    Raises:
        SourceError, StorageError: as `read`.
    """
    folder = os.fspath(path)
    weights = next((n for n in _WEIGHTS if os.path.isfile(os.path.join(folder, n))), "")
    if not weights.endswith(INDEX):
        return set()
    _, weight_map = _index(os.path.join(folder, weights))
    return set(weight_map.values())


def json_object(path: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        SourceError: the file is too long, is not a JSON object, or has a key twice.
        StorageError: the file cannot be read.
    """
    content = json_file.content(path)
    try:
        # Infinity and NaN are accepted: transformers writes them into configs of its models.
        value = json.loads(content, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise json_file.refusal(path, error) from None
    if not isinstance(value, dict):
        raise SourceError("not a JSON object", file=path)
    return value


def _index(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the metadata of an index of shards, and its weight map: tensor → shard."""
    content = json_object(path)
    metadata, weight_map = content.get("metadata") or {}, content.get("weight_map")
    if not isinstance(metadata, dict) or not isinstance(weight_map, dict) or not weight_map:
        raise SourceError("not an index of shards", file=path, expected="a weight_map")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or os.path.basename(name) != name or "\\" in name:
            raise SourceError(
                "a shard outside the folder",
                file=path,
                part=tensor,
                found=name,
                expected="a file name",
            )
        if not name.endswith((".safetensors", ".bin")):
            raise SourceError("not a file of weights", file=path, part=tensor, found=name)
    return metadata, weight_map


def _config(folder: Folder) -> Mapping[str, Any]:
    if folder.has(CONFIG):
        return json_object(folder.file(CONFIG))
    if os.path.lexists(folder.file(CONFIG)):
        raise SourceError("not a regular file", file=folder.path, part=CONFIG, expected="a file")
    return {}


def _require_same_weights(config: Mapping[str, Any], weights: str, folder: Folder) -> None:
    """Refuse a config that makes transformers 5 load other files than the usual ones."""
    named = config.get(_NAMED_WEIGHTS)
    if named is not None and named != weights:
        raise SourceError(
            "the base's config names other weight files than the usual ones",
            file=folder.file(CONFIG),
            part=_NAMED_WEIGHTS,
            found=named,
            expected=weights,
            advice="load the base with transformers, save it, and merge into the saved model",
        )


def _shard(folder: Folder, name: str) -> Shard:
    path = folder.file(name)
    if not folder.has(name):
        raise SourceError(
            "a shard is missing",
            file=folder.path,
            found=f"no {name}",
            expected="every file that the index names",
            advice="fetch the model again",
        )
    if name.endswith(".safetensors"):
        file = safetensors.read(path)
        return Shard(name, file.tensors, file.metadata)
    return Shard(name, pickle.read(path), {})


def _require_agreement(
    shards: tuple[Shard, ...], weight_map: Mapping[str, str], index: str
) -> None:
    """Refuse shards that do not have exactly the tensors that the index says."""
    for shard in shards:
        path = os.path.join(os.path.dirname(index), shard.name)
        for name in shard.tensors:
            if name not in weight_map:
                raise SourceError("a tensor is not in the index", file=path, part=name)
            if weight_map[name] != shard.name:
                raise SourceError(
                    "one tensor is in two shards",
                    file=index,
                    part=name,
                    found=f"{shard.name} and {weight_map[name]}",
                    expected="one",
                )
    there = {name for shard in shards for name in shard.tensors}
    missing = next((name for name in weight_map if name not in there), None)
    if missing is not None:
        raise SourceError(
            "a tensor is missing",
            file=os.path.join(os.path.dirname(index), weight_map[missing]),
            part=missing,
            expected="every tensor that the index names",
        )


def in_a_layer(name: str) -> bool:
    """Return whether a tensor belongs to a numbered layer."""
    return any(part.isdigit() for part in name.split("."))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"{twice!r} twice")
    return result
