"""A base model's folder, as transformers saves it: weights in one file or in shards, a config, and
whatever else lies beside them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vbfmt._files import json_file
from vbfmt.converters._files import pickle, safetensors
from vbfmt.converters.merge.paths import Folder
from vbfmt.errors import SourceError
from vbfmt.tensors import Tensor

CONFIG = "config.json"
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"

_WEIGHTS = (SAFETENSORS, SAFETENSORS + INDEX, PICKLE, PICKLE + INDEX)
"""In the order in which transformers looks for them."""

# Other forms of the same weights, which the output must not keep: nothing was merged into them.
_OLD_WEIGHTS = re.compile(
    r"(model|pytorch_model|consolidated|tf_model|flax_model|rust_model)([.\-].*)?"
    r"\.(safetensors|bin|h5|msgpack|pth?|ot)(\.index\.json)?"
    r"|.*\.(gguf|ggml|onnx|onnx_data|tflite|mlmodel)"
)
_OLD_FOLDERS = re.compile(r"onnx|openvino|coreml|gguf|original|checkpoint-\d+")


@dataclass(frozen=True)
class Shard:
    """One file of weights.

    Attributes:
        name: of the file.
        tensors: by name, mapped in place.
        metadata: of the file.
    """

    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Base:
    """A base model.

    Attributes:
        path: its folder.
        shards: its weights, at least one file.
        index: the index's own metadata, None where there is no index.
        config: what ``config.json`` says.
        side_files: all other files, as paths within the folder.
        left_out: what holds other forms of the weights, or is no regular file.
    """

    path: str
    shards: tuple[Shard, ...]
    index: Mapping[str, Any] | None
    config: Mapping[str, Any]
    side_files: tuple[str, ...]
    left_out: tuple[str, ...]

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """All tensors by name."""
        return {name: tensor for shard in self.shards for name, tensor in shard.tensors.items()}

    @cached_property
    def outside_layers(self) -> Mapping[tuple[int, ...], Sequence[str]]:
        """The names of the tensors that stand in no numbered layer, by shape."""
        found: dict[tuple[int, ...], list[str]] = {}
        for name, tensor in self.tensors.items():
            if not in_a_layer(name):
                found.setdefault(tensor.shape, []).append(name)
        return found

    @cached_property
    def _digests(self) -> dict[str, bytes]:
        return {}

    def digest(self, name: str) -> bytes:
        """Return a digest of a tensor's dtype, shape and values, which are read once."""
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
        """Return the tensors outside of layers that have the dtype, shape and values of this one,
        itself included if it is one of them."""
        shape = self.tensors[name].shape
        if shape not in self._equal:
            groups: dict[bytes, list[str]] = {}
            for other in self.outside_layers.get(shape, ()):
                groups.setdefault(self.digest(other), []).append(other)
            self._equal[shape] = groups
        return self._equal[shape].get(self.digest(name), ())


def read(path: str | os.PathLike[str], *, follow_links: bool = False) -> Base:
    """Map a base model; its weights are not copied.

    Args:
        follow_links: use links that lead out of the folder, too (and out of the hub's cache that
            it is part of).

    Raises:
        SourceError: no weights, a shard or a tensor is missing, one tensor is there twice, or a
            link leads out of the folder.
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
    index: Mapping[str, Any] | None = None
    if weights.endswith(INDEX):
        index, weight_map = _index(folder.file(weights))
        shards = tuple(_shard(folder, name) for name in sorted(set(weight_map.values())))
        _require_agreement(shards, weight_map, folder.file(weights))
    else:
        shards = (_shard(folder, weights),)
    side_files, left_out = _side_files(folder, {weights, *(shard.name for shard in shards)})
    return Base(
        path=folder.path,
        shards=shards,
        index=index,
        config=_config(folder),
        side_files=side_files,
        left_out=left_out,
    )


def needed(names: Collection[str]) -> list[str]:
    """Of all files of a model (as paths with slashes) those that are read or copied; of shards only
    their index, which names them. None if there are no weights.
    """
    weights = next((name for name in _WEIGHTS if name in names), None)
    if weights is None:
        return []
    sides = [name for name in names if not name.startswith(".") and not _is_left_out(name)]
    return [weights, *(name for name in sides if name != weights)]


def shards_of(path: str | os.PathLike[str]) -> set[str]:
    """The shards that a model's index names; none where the weights are one file.

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
    """The JSON object in a file, in which no key stands twice.

    Raises:
        SourceError: something else is in it, or it is too long.
        StorageError: it cannot be read.
    """
    content = json_file.content(path)
    try:
        # Infinity and NaN are not refused: transformers writes them into configs of its models.
        value = json.loads(content, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise SourceError("not sound JSON", file=path, found=error) from None
    if not isinstance(value, dict):
        raise SourceError("not a JSON object", file=path)
    return value


def _index(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The metadata of an index, and the file of every tensor."""
    content = json_object(path)
    metadata, weight_map = content.get("metadata") or {}, content.get("weight_map")
    if not isinstance(metadata, dict) or not isinstance(weight_map, dict) or not weight_map:
        raise SourceError("not an index of shards", file=path, expected="a weight_map")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or os.path.basename(name) != name or "\\" in name:
            raise SourceError(
                "a shard outside the folder", file=path, part=tensor, found=name, expected="a name"
            )
        if not name.endswith((".safetensors", ".bin")):
            raise SourceError("not a file of weights", file=path, part=tensor, found=name)
    return metadata, weight_map


def _config(folder: Folder) -> Mapping[str, Any]:
    if folder.has(CONFIG):
        return json_object(folder.file(CONFIG))
    if os.path.lexists(folder.file(CONFIG)):
        raise SourceError("no regular file", file=folder.path, part=CONFIG, expected="a file")
    return {}


def _shard(folder: Folder, name: str) -> Shard:
    path = folder.file(name)
    if not folder.has(name):
        raise SourceError("a shard is missing", file=folder.path, found=f"no {name}")
    if name.endswith(".safetensors"):
        file = safetensors.read(path)
        return Shard(name, file.tensors, file.metadata)
    return Shard(name, pickle.read(path), {})


def _require_agreement(
    shards: tuple[Shard, ...], weight_map: Mapping[str, str], index: str
) -> None:
    """Every tensor is where the index says, and nowhere else."""
    for shard in shards:
        path = os.path.join(os.path.dirname(index), shard.name)
        for name in shard.tensors:
            if name not in weight_map:
                raise SourceError("a tensor that the index does not name", file=path, part=name)
            if weight_map[name] != shard.name:
                raise SourceError(
                    "one tensor in two shards",
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


def _side_files(folder: Folder, weights: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What to copy, and what not to: neither `weights` (which are not listed) nor old ones."""
    kept: list[str] = []
    left: list[str] = []
    for path in folder.files():
        if path in weights:
            continue
        if _is_left_out(path.replace(os.sep, "/")) or not folder.has(path):
            left.append(path)
        else:
            kept.append(path)
    return tuple(kept), tuple(left)


def in_a_layer(name: str) -> bool:
    """Return whether a tensor stands in a numbered layer."""
    return any(part.isdigit() for part in name.split("."))


def _is_left_out(path: str) -> bool:
    top, _, rest = path.partition("/")
    return bool((_OLD_FOLDERS if rest else _OLD_WEIGHTS).fullmatch(top))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"{twice!r} twice")
    return result
