"""PEFT's names for what a VB-LoRA adapter consists of: keys of its state dicts, its config.

As `vbfmt.torch` writes checkpoints and `vbfmt.converters.peft` reads and writes them (PEFT 0.13 to
0.21: peft/tuners/vblora/model.py, peft/utils/save_and_load.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
BANK = "base_model.vblora_vector_bank"

_SETS = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform")
_ABOUT_THE_FILE = ("save_only_topk_weights",)
_ABOUT_THE_BASE = ("base_model_name_or_path", "revision")


def key_of_logits(module: str, factor: str) -> str:
    """The key of a module's logits: factor A is (r, in/b, h), factor B (out/b, r, h)."""
    return f"{PREFIX}{module}.vblora_logits_{factor}"


def key_of_tensor(name: str, modules: Collection[str]) -> str:
    """The key of a tensor that is named as in the base model.

    The bias of an adapted layer stands in the layer that PEFT has wrapped.
    """
    owner, _, leaf = name.rpartition(".")
    inner = f"{owner}.base_layer.{leaf}" if owner in modules else name
    return f"{PREFIX}{inner}"


def base_of(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The base model's name and revision, as the config has them."""
    name, revision = (config.get(key) for key in _ABOUT_THE_BASE)
    return _text(name), _text(revision)


def canonical_config(config: Mapping[str, Any]) -> str:
    """The config as the packed form keeps it: one text for one meaning.

    Left out is what belongs to the file it came from (which form its weights had) and to the base
    model, which the packed form names elsewhere. Lists that PEFT treats as sets are sorted.
    """
    kept = {
        key: sorted(value, key=str) if key in _SETS and isinstance(value, list) else value
        for key, value in config.items()
        if key not in _ABOUT_THE_FILE + _ABOUT_THE_BASE
    }
    return json.dumps(
        kept, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
