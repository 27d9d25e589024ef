"""Decide which files of a base, other than its weights, a merge copies."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping

from vbfmt.converters._files import safetensors
from vbfmt.converters.merge.paths import Folder
from vbfmt.errors import SourceError

# Copies of the weights in other formats. They must not be in the output, because the adapter is not
# merged into them.
_OLD_WEIGHTS = re.compile(
    r"(model|pytorch_model|consolidated|tf_model|flax_model|rust_model)([.\-].*)?"
    r"\.(safetensors|bin|h5|msgpack|pth?|ot)(\.index\.json)?"
    r"|.*\.(gguf|ggml|onnx|onnx_data|tflite|mlmodel)"
)
_OLD_FOLDERS = re.compile(r"onnx|openvino|coreml|gguf|original|checkpoint-\d+")


def partition(
    folder: Folder, paths: Iterable[str], shards: Mapping[str, Collection[str]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the paths to copy and the paths to leave out. Neither contains the shards.

    Args:
        folder: the base's folder.
        paths: paths of its files, within the folder.
        shards: the names of each shard's tensors.
    """
    kept: list[str] = []
    left: list[str] = []
    names = frozenset(name for tensors in shards.values() for name in tensors)
    for path in paths:
        if path in shards:
            continue
        plain = path.replace(os.sep, "/")
        out = is_left_out(plain) or not folder.has(path) or _has_copies(folder, plain, names)
        (left if out else kept).append(path)
    return tuple(kept), tuple(left)


def is_left_out(path: str) -> bool:
    """Return whether a file holds the weights in another format. The path has slashes on every
    system."""
    top, _, rest = path.partition("/")
    return bool((_OLD_FOLDERS if rest else _OLD_WEIGHTS).fullmatch(top))


def _has_copies(folder: Folder, name: str, tensors: Collection[str]) -> bool:
    """Return whether a safetensors file beside the shards has tensors with the same names.

    If a folder has no index, vLLM loads every safetensors file in it, and the last value is used.
    """
    if "/" in name or not name.endswith(".safetensors"):
        return False
    try:
        found = safetensors.read(folder.file(name)).tensors
    except SourceError:
        return False
    return not found.keys().isdisjoint(tensors)
