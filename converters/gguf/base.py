"""What a GGUF adapter must know of its base: architecture, layers, heads, and its tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from vbfmt._files import json_file
from vbfmt.converters.gguf import metadata
from vbfmt.converters.gguf.architectures import ARCHITECTURES, BY_CLASS, BY_NAME, Architecture
from vbfmt.errors import MissingExtraError, SourceError
from vbfmt.estimate import linears

PathLike = str | os.PathLike[str]

_LARGEST_COUNT = 65536
MOST_LAYERS = 1024
"""The gguf package makes tables of every layer's tensors: 50 kB each."""
_BLOCKS, _HEADS, _KEY_VALUE_HEADS = (
    f".{key}" for key in ("block_count", "attention.head_count", "attention.head_count_kv")
)


@dataclass(frozen=True)
class Base:
    """The base model.

    Attributes:
        architecture: of llama.cpp.
        layers: transformer blocks.
        heads, key_value_heads: of attention; 0 where unknown (and not needed).
        tied: whether the output shares the embedding's tensor, None where unknown.
        shapes: tensor name → (out, in): all of a GGUF file's; of a config, the linear layers that
            follow from it.
    """

    architecture: Architecture
    layers: int
    heads: int
    key_value_heads: int
    tied: bool | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def package() -> ModuleType:
    """The ``gguf`` package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtraError.of("GGUF needs the gguf package", "gguf") from None
    module: ModuleType = gguf
    return module


def read_base(path: PathLike) -> Base:
    """The base in a folder with transformers' ``config.json``, that file itself, or a GGUF file.

    Raises:
        SourceError: neither, damaged, or an architecture that is not in the table.
        MissingExtraError: the gguf package is missing.
        StorageError: it cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    if not file.is_file():
        raise SourceError(
            "no base model",
            file=path,
            expected="a folder with config.json, or a GGUF file",
            advice="give its folder or file: `base=PATH`",
        )
    try:
        return _of_config(json_file.read(file)) if file.suffix == ".json" else _of_gguf(file)
    except SourceError as error:
        raise error.in_file(file) from None


def _of_config(config: Mapping[str, Any]) -> Base:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or name not in BY_CLASS:
        raise _unknown(name, ", ".join(sorted(BY_CLASS)))
    layers = _count(config, "num_hidden_layers", "n_layer", most=MOST_LAYERS)
    heads = _count(config, "num_attention_heads", "n_head")
    tied = config.get("tie_word_embeddings")
    return Base(
        BY_CLASS[name],
        layers,
        heads,
        _count(config, "num_key_value_heads", default=heads),
        tied=tied if isinstance(tied, bool) else None,
        shapes=_shapes(config, BY_CLASS[name], layers),
    )


def _shapes(
    config: Mapping[str, Any], architecture: Architecture, layers: int
) -> dict[str, tuple[int, ...]]:
    """What the tensors of a config's model measure; the output's only if it says how many words."""
    known = names(architecture, layers)
    blocks = linears(config)
    shapes: dict[str, tuple[int, ...]] = {
        f"{known.get_name(layer.name)}.weight": (layer.out_features, layer.in_features)
        for layer in blocks
    }
    words = config.get("vocab_size")
    if isinstance(words, int):
        shapes["output.weight"] = (words, blocks[0].in_features)
    return shapes


def names(architecture: Architecture, layers: int) -> Any:
    """The gguf package's map from names of modules to those of tensors (its ``get_name``)."""
    gguf = package()
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(numbers[architecture.name], layers)


def _count(
    config: Mapping[str, Any], *keys: str, default: int | None = None, most: int = _LARGEST_COUNT
) -> int:
    value = next((config[key] for key in keys if config.get(key) is not None), default)
    sound = isinstance(value, int) and not isinstance(value, bool)
    if not sound or not 0 < value <= most:  # type: ignore[operator]
        raise SourceError(
            "not usable as a base",
            part=keys[0],
            found=value,
            expected=f"a whole number, 1 to {most}",
        )
    count: int = value  # type: ignore[assignment]
    return count


def _of_gguf(file: Path) -> Base:
    found = metadata.read(file, ("general.architecture", _BLOCKS, _HEADS, _KEY_VALUE_HEADS))
    name = found.fields.get("general.architecture")
    if not isinstance(name, str) or name not in BY_NAME:
        raise _unknown(name, ", ".join(sorted(BY_NAME)))
    fields = _one_for_all(found.fields)
    heads = _count(fields, name + _HEADS)
    return Base(
        BY_NAME[name],
        _count(fields, name + _BLOCKS, most=MOST_LAYERS),
        heads,
        _count(fields, name + _KEY_VALUE_HEADS, default=heads),
        tied="output.weight" not in found.shapes,
        shapes=found.shapes,
    )


def _one_for_all(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays of one count over and over as that count; others stay, and are refused as counts."""
    return {
        key: value[0]
        if isinstance(value, list) and value and value.count(value[0]) == len(value)
        else value
        for key, value in fields.items()
    }


def _unknown(found: object, known: str) -> SourceError:
    return SourceError(
        f"an architecture whose GGUF names are not known here ({len(ARCHITECTURES)} are)",
        part="architecture",
        found=found,
        expected=known,
        advice="write a LoRA folder and use llama.cpp's own convert_lora_to_gguf.py",
    )
