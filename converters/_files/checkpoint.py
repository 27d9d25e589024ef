"""Open a checkpoint of another format: its tensors and its config, not yet interpreted."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import PathLike, json_file, peft_layout, storage, unchanged
from vbfmt.converters._files import pickle, safetensors, training_run
from vbfmt.errors import ContentError, MissingSourceError, SourceError
from vbfmt.tensors import SMALLEST_NORMAL, Tensor

WEIGHTS = (
    peft_layout.WEIGHTS,
    "adapter_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model_fsdp.bin",
)
"""Names of weights files, in the order of search: an adapter's own weights come before those of a
whole model."""

CONFIGS = (peft_layout.CONFIG, "config.json")
"""Names of configs that a reader may use, beside the weights."""

FLOATS = ("F32", "F16", "BF16", "F64")
"""Accepted dtypes of banks and logits, by their safetensors names."""

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Names of index files, for a whole model in shards."""

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
"""Suffixes of weights files."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        file: path of the weights file, or of the index of shards.
        tensors: the tensors by the keys in the file, memory-mapped.
        shards: paths of the shards, if there are several.
        stamps: size and times of each file that may be read, when the checkpoint was opened.
    """

    file: Path
    tensors: Mapping[str, Tensor]
    shards: tuple[Path, ...] = ()
    stamps: unchanged.Stamps = field(default_factory=dict)

    def require_unchanged(self) -> None:
        """Check that the files have not changed since they were opened, so that their contents
        match.

        Raises:
            StorageError: a file was written, replaced or removed meanwhile.
        """
        unchanged.require(self.stamps, "the checkpoint")

    def config(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object in the config with this name beside the weights.

        If there is no such file, return None.

        Raises:
            SourceError: the file is not a JSON object, or is a folder.
            StorageError: the file cannot be read.
        """
        path = self.config_file(name)
        with storage.refusing("cannot read", path):
            if path.is_dir():
                raise SourceError(
                    "not a config", file=path, found="a folder", expected="a JSON file"
                )
            return json_file.read(path) if path.is_file() else None

    def config_file(self, name: str) -> Path:
        """Return the path of the config with this name beside the weights. It need not exist."""
        return self.file.parent / name


def needed(names: Collection[str]) -> list[str]:
    """Return the names of a checkpoint's files that are read: one weights file, and configs.

    Args:
        names: names of all files in the checkpoint. Without a weights file, the result is empty.
    """
    weights = next((name for name in WEIGHTS if name in names), None)
    return [weights, *(name for name in CONFIGS if name in names)] if weights else []


def open_checkpoint(path: PathLike) -> Checkpoint:
    """Open the checkpoint in a folder, or the checkpoint with a given weights file.

    Raises:
        SourceError: there are no weights, or the file contains anything except tensors.
        MissingSourceError: there is no such file or folder.
        StorageError: a file cannot be read.
    """
    with storage.refusing("cannot read", path):
        file = _locate(Path(path))
    shards = _shards(file) if file.name in _INDEXES else {}
    configs = (file.parent / name for name in CONFIGS)
    stamps = unchanged.stamps([file, *shards, *configs])
    tensors = _sharded(file, shards) if shards else _tensors(file)
    return Checkpoint(file, tensors, tuple(shards), stamps)


def owned(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor in memory, which does not change if the file changes."""
    return Tensor(tensor.dtype, tensor.shape, np.array(tensor.data))


def _tensors(file: Path) -> Mapping[str, Tensor]:
    if file.suffix == ".safetensors":
        return safetensors.read(file).tensors
    return pickle.read(file)


def _shards(index: Path) -> dict[Path, set[str]]:
    """Return the keys that an index gives to each shard, by the shard's path."""
    weight_map = json_file.read(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError("not an index of weights", file=index, expected="a weight_map")
    shards: dict[Path, set[str]] = {}
    for key, name in weight_map.items():
        valid = isinstance(name, str) and os.path.basename(name) == name and "\\" not in name
        if not valid or not name.endswith(SUFFIXES):
            raise SourceError("not a file of weights", file=index, found=shown(name))
        shards.setdefault(index.parent / name, set()).add(key)
    return dict(sorted(shards.items()))


def _sharded(index: Path, shards: Mapping[Path, set[str]]) -> dict[str, Tensor]:
    """Return the tensors of all shards. Each shard must have exactly the tensors that the index
    says."""
    result: dict[str, Tensor] = {}
    for path, keys in shards.items():
        tensors = _tensors(path)
        wrong = next(iter(sorted(keys ^ tensors.keys())), None)
        if wrong is not None:
            raise SourceError(
                "a shard does not have the tensors that the index gives to it",
                file=path,
                part=wrong,
                found="a tensor" if wrong in tensors else "no such tensor",
                expected="no such tensor" if wrong in tensors else f"a tensor, as in {index.name}",
                advice="save or fetch the checkpoint again",
            )
        result.update(tensors)
    return result


def agreed_k(sources: Mapping[str, object]) -> int:
    """Return k, on which all sources must agree.

    Args:
        sources: name of the source → k, or None if the source does not give k.

    Raises:
        SourceError: no source gives k, sources disagree, or k is not a positive integer.
    """
    known = {source: k for source, k in sources.items() if k is not None}
    if not known:
        raise SourceError(
            "logits do not show how many vectors are selected, and no config gives topk",
            part="topk",
            advice="give it: `topk=K` (the paper and PEFT use 2)",
        )
    numbers = [size_in(source, "topk", k) for source, k in known.items()]
    if len(set(numbers)) > 1:
        raise SourceError(
            "sources disagree on k",
            part="topk",
            found=", ".join(f"{k} from {source}" for source, k in known.items()),
            advice="a model works only with the k that it was trained with",
        )
    return numbers[0]


def size_in(source: str, key: str, value: object) -> int:
    """Check a size from a source, and return it.

    Args:
        source: name of the source, for messages.
        key: the size's key in the source, for messages.
        value: the value. Even ``true`` and ``"2"`` are refused.

    Raises:
        SourceError: the value is not a whole number of at least 1.
    """
    if type(value) is not int or value < 1:
        raise SourceError(
            "not a size",
            part=key,
            found=f"{shown(value)} from {source}",
            expected="a whole number, at least 1",
        )
    return value


def shown(value: object) -> str:
    """Return a config's value as JSON with at most 80 characters, so that ``"2"`` and ``2``
    differ."""
    return json.dumps(value, ensure_ascii=False)[:80]


def require_gathered(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors without elements, which DeepSpeed's ZeRO-3 saves for partitioned parameters.

    Raises:
        SourceError: there are such tensors.
    """
    empty = [key for key, tensor in tensors.items() if tensor.shape == (0,)]
    if empty:
        raise SourceError(
            "tensors without elements, which DeepSpeed ZeRO-3 saves if parameters are not gathered",
            part=empty[0],
            found=f"{len(empty)} of {len(tensors)} tensors empty",
            advice="run zero_to_fp32.py in the training checkpoint and pack its output, or save "
            "with stage3_gather_16bit_weights_on_model_save",
        )


def bank_of(tensor: Tensor) -> NDArray[np.float32]:
    """Return the vector bank as a float32 array (h, b).

    Raises:
        SourceError: the tensor is not a matrix of floats.
        ContentError: a value is NaN, infinite or too large for float32, or all values are too small
            for float32's full precision.
    """
    if tensor.dtype not in FLOATS or len(tensor.shape) != 2 or 0 in tensor.shape:
        raise SourceError("not a vector bank", part="vector bank", found=tensor, expected="(h, b)")
    given = tensor.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        bank: NDArray[np.float32] = np.ascontiguousarray(given.astype("<f4"))
        bad = np.argwhere(~np.isfinite(bank))
    if len(bad):
        vector, element = bad[0].tolist()
        raise ContentError(
            "values are not finite in float32",
            part="vector bank",
            found=f"{float(given[vector, element]):g} in vector {vector}",
            expected="finite numbers",
            advice="the training diverged, or the file is damaged: use another checkpoint",
        )
    require_kept(given, "vector bank")
    return bank


def require_kept(values: NDArray[Any], part: str) -> None:
    """Refuse values that are all too small for float32's precision.

    Raises:
        ContentError: with the largest of them.
    """
    if values.dtype != np.float64:  # the others have no smaller numbers
        return
    largest = np.abs(values).max(initial=0)
    if 0 < largest < SMALLEST_NORMAL["F32"]:
        raise ContentError(
            "values are too small for float32",
            part=part,
            found=f"at most {largest:.3g}",
            expected=f"at least {SMALLEST_NORMAL['F32']:.2g}",
            advice="the training diverged, or the file is damaged: use another checkpoint",
        )


def _locate(path: Path) -> Path:
    """Return the path of a checkpoint's weights file, or of its index of shards."""
    if path.is_dir():
        names = (*WEIGHTS, *_INDEXES)
        weights = next((path / name for name in names if (path / name).is_file()), None)
        if weights is None:
            raise training_run.refusal(path) or SourceError(
                "no adapter weights",
                file=path,
                found=", ".join(map(_described, sorted(path.iterdir())[:5])) or "an empty folder",
                expected=f"a file {' or '.join(WEIGHTS)}",
            )
        return weights
    if path.suffix not in SUFFIXES:
        there = path.exists()
        raise (SourceError if there else MissingSourceError)(
            "not a checkpoint" if there else "no such file or folder",
            file=path,
            expected=f"a folder, or a file that ends with {', '.join(SUFFIXES)}",
            advice="this file is packed already" if path.suffix == ".vblora" and there else None,
        )
    return path


def _described(path: Path) -> str:
    return f"{path.name} (a folder)" if path.is_dir() else path.name
