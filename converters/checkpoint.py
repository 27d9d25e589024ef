"""A foreign checkpoint as it lies on the disk, before anybody has said what its tensors mean."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt import storage
from vbfmt.converters import json_file, pickle, safetensors
from vbfmt.errors import SourceError
from vbfmt.tensors import Tensor

PathLike = str | os.PathLike[str]

WEIGHTS = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
"""Weights that a folder is searched for, in this order: an adapter's own before a whole model's."""

CONFIGS = ("adapter_config.json", "config.json")
"""Configs that a reader may look for beside the weights."""

FLOATS = ("F32", "F16", "BF16", "F64")
"""Dtypes that banks and logits come in."""

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Checkpoint:
    """What a reader is given.

    Attributes:
        file: the weights file.
        tensors: by key, as the file has them.
    """

    file: Path
    tensors: Mapping[str, Tensor]

    def config(self, name: str) -> dict[str, Any] | None:
        """The JSON object in the file of that name beside the weights, None if there is no file.

        Raises:
            SourceError: not a JSON object.
            StorageError: the operating system refuses.
        """
        path = self.config_file(name)
        try:
            return json_file.read(path) if path.is_file() else None
        except OSError as error:
            raise storage.refusal("cannot read", path, error) from None

    def config_file(self, name: str) -> Path:
        """Where that config would be."""
        return self.file.parent / name


def needed(names: Collection[str]) -> list[str]:
    """Of all files of a checkpoint those that are read: one of weights, and configs; none if there
    are no weights."""
    weights = next((name for name in WEIGHTS if name in names), None)
    return [weights, *(name for name in CONFIGS if name in names)] if weights else []


def open_checkpoint(path: PathLike) -> Checkpoint:
    """The checkpoint in a folder, or of a weights file.

    Raises:
        SourceError: there are no weights, or they cannot be read as tensors alone.
        StorageError: the operating system refuses.
    """
    try:
        file = _locate(Path(path))
    except OSError as error:
        raise storage.refusal("cannot read", path, error) from None
    if file.suffix == ".safetensors":
        return Checkpoint(file, safetensors.read(file).tensors)
    return Checkpoint(file, pickle.read(file))


def agreed_k(said: Mapping[str, object]) -> int:
    """k as every source of it says, None where one is silent; they must not disagree.

    Raises:
        SourceError: nobody knows k, they disagree, or it is no positive integer.
    """
    known = {source: k for source, k in said.items() if k is not None}
    if not known:
        raise SourceError(
            "logits do not tell how many vectors are selected, and there is no config",
            part="topk",
            advice="give it: --topk K (the paper and PEFT use 2)",
        )
    first, *others = known.values()
    # bool is an int to Python, but no number of vectors.
    if type(first) is not int or any(type(k) is not int or k != first for k in others):
        raise SourceError(
            "sources disagree on k",
            part="topk",
            found=", ".join(f"{k} from {source}" for source, k in known.items()),
            advice="a model works only with the k that it was trained with",
        )
    if first < 1:
        raise SourceError("k is out of range", part="topk", found=first, expected="at least 1")
    return first


def bank_of(tensor: Tensor) -> NDArray[np.float32]:
    """The vector bank (h, b) in float32.

    Raises:
        SourceError: not a matrix of floats.
    """
    if tensor.dtype not in FLOATS or len(tensor.shape) != 2 or 0 in tensor.shape:
        raise SourceError("not a vector bank", part="vector bank", found=tensor, expected="(h, b)")
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
        return np.ascontiguousarray(tensor.numpy().astype("<f4"))


def _locate(path: Path) -> Path:
    if path.is_dir():
        weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if weights is None:
            raise SourceError(
                "no adapter weights",
                file=path,
                found=", ".join(sorted(os.listdir(path))[:5]) or "an empty folder",
                expected=" or ".join(WEIGHTS),
            )
        return weights
    if path.suffix not in _SUFFIXES:
        raise SourceError(
            "not a checkpoint" if path.exists() else "no such file or folder",
            file=path,
            expected=f"a folder, or a file that ends with {', '.join(_SUFFIXES)}",
            advice="it is packed already" if path.suffix == ".vblora" and path.exists() else None,
        )
    return path
