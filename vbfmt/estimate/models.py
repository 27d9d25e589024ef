"""Find the linear layers of one of the paper's models, or of any model with a ``config.json``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vbfmt._files import PathLike, json_file
from vbfmt.errors import SourceError
from vbfmt.estimate.architecture import KNOWN, Linear, linears


def _gpt2(d: int, blocks: int, heads: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_embd": d, "n_layer": blocks, "n_head": heads}


def _config(kind: str, d: int, f: int, blocks: int, heads: int, **others: int) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": d,
        "intermediate_size": f,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        **others,
    }


PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "roberta-base": _config("roberta", 768, 3072, 12, 12),
        "roberta-large": _config("roberta", 1024, 4096, 24, 16),
        "gpt2-medium": _gpt2(1024, 24, 16),
        "gpt2-large": _gpt2(1280, 36, 20),
        "llama-2-7b": _config("llama", 4096, 11008, 32, 32),
        "llama-2-13b": _config("llama", 5120, 13824, 40, 40),
        "mistral-7b": _config("mistral", 4096, 14336, 32, 32, num_key_value_heads=8),
        "gemma-7b": _config("gemma", 3072, 24576, 28, 16, num_key_value_heads=16, head_dim=256),
    }
)
"""Name of a model → the part of its published config that determines its linear layers."""


def from_folder(path: PathLike) -> tuple[Linear, ...]:
    """Return the linear layers of the model in a folder.

    If the architecture is not one of `KNOWN` and transformers is installed, transformers builds the
    model on the meta device, without weights. Code that comes with a model is never run.

    Args:
        path: the folder, or a ``config.json`` itself.

    Raises:
        SourceError: the config is missing or not a JSON object, or the layers are unknown.
        StorageError: the config cannot be read.
    """
    path = os.fspath(path)
    file = os.path.join(path, "config.json") if os.path.isdir(path) else path
    if file != path and not os.path.exists(file):
        raise SourceError("no config.json", file=path, expected="a model's folder")
    if os.path.isfile(file) and not file.endswith(".json"):
        raise SourceError(
            "not a model's config",
            file=path,
            expected="a folder with config.json, or a config.json",
        )
    config = json_file.read(file)
    try:
        if config.get("model_type") in KNOWN:
            return linears(config)
        return _with_transformers(config)
    except SourceError as error:
        raise error.in_file(file) from None


def _with_transformers(config: dict[str, Any]) -> tuple[Linear, ...]:
    try:
        from vbfmt.estimate.meta import linears_on_meta
    except ImportError:
        raise SourceError(
            "unknown kind of model",
            part="model_type",
            found=repr(config.get("model_type")),
            expected=f"one of {', '.join(KNOWN)}",
            advice="transformers knows other models: pip install 'vbfmt[peft]'",
        ) from None
    return linears_on_meta(config)
