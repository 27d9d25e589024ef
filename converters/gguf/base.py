"""Read what a GGUF adapter depends on in its base: architecture, layers, heads and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from vbfmt._files import PathLike, json_file
from vbfmt.converters.gguf import metadata
from vbfmt.converters.gguf.architectures import ARCHITECTURES, BY_CLASS, BY_NAME, Architecture
from vbfmt.errors import MissingExtraError, SourceError, in_file
from vbfmt.estimate import linears

_LARGEST_COUNT = 65536
MOST_LAYERS = 1024
"""Largest number of layers of a base. The gguf package creates a table of 50 kB for each layer."""
_BLOCKS, _HEADS, _KEY_VALUE_HEADS = (
    f".{key}" for key in ("block_count", "attention.head_count", "attention.head_count_kv")
)


@dataclass(frozen=True)
class Base:
    """The base model.

    Attributes:
        architecture: its architecture in llama.cpp.
        layers: number of transformer blocks.
        heads: number of attention heads.
        key_value_heads: number of attention heads for keys and values.
        tied: whether the output shares the embedding's tensor; None if unknown.
        shapes: tensor's name → (out, in). From a GGUF file, it has all tensors; from a config, only
            the linear layers that the config determines.
    """

    architecture: Architecture
    layers: int
    heads: int
    key_value_heads: int
    tied: bool | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def package() -> ModuleType:
    """Import and return the ``gguf`` package.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtraError.of("GGUF needs the gguf package", "gguf") from None
    module: ModuleType = gguf
    return module


def read_base(path: PathLike) -> Base:
    """Read the description of a base model.

    Args:
        path: a folder with transformers' ``config.json``, that file, or a GGUF file.

    Raises:
        SourceError: the path is none of these, the file is damaged, or its architecture is not
            supported.
        MissingExtraError: the gguf package is not installed.
        StorageError: the file cannot be read.
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
    with in_file(file):
        return _of_config(json_file.read(file)) if file.suffix == ".json" else _of_gguf(file)


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
    """Return the shapes of a model's linear layers, from its config.

    If the config has the size of the vocabulary, the output layer is included.
    """
    known = names(architecture, layers)
    blocks = linears(config)
    shapes: dict[str, tuple[int, ...]] = {
        f"{known.get_name(layer.name)}.weight": (layer.out_features, layer.in_features)
        for layer in blocks
    }
    vocabulary = config.get("vocab_size")
    if isinstance(vocabulary, int):
        shapes["output.weight"] = (vocabulary, blocks[0].in_features)
    return shapes


def names(architecture: Architecture, layers: int) -> Any:
    """Return the gguf package's map of names, whose ``get_name`` returns a module's tensor."""
    gguf = package()
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(numbers[architecture.name], layers)


def _count(
    config: Mapping[str, Any], *keys: str, default: int | None = None, most: int = _LARGEST_COUNT
) -> int:
    value = next((config[key] for key in keys if config.get(key) is not None), default)
    valid = isinstance(value, int) and not isinstance(value, bool)
    if not valid or not 0 < value <= most:  # type: ignore[operator]
        raise SourceError(
            "the base has an unusable value",
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
    """Return the fields, with every array of equal numbers replaced by that number.

    An array of different numbers is not replaced; `_count` refuses it.
    """
    return {
        key: value[0]
        if isinstance(value, list) and value and value.count(value[0]) == len(value)
        else value
        for key, value in fields.items()
    }


def _unknown(found: object, known: str) -> SourceError:
    return SourceError(
        f"unsupported architecture for GGUF ({len(ARCHITECTURES)} are supported)",
        part="architecture",
        found=found,
        expected=known,
        advice="write a LoRA folder and use llama.cpp's own convert_lora_to_gguf.py",
    )
