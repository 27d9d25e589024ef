"""PEFT's ``adapter_config.json``, read and written for VB-LoRA and LoRA."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from vbfmt.adapter import Adapter
from vbfmt.converters.combine import LowRank
from vbfmt.errors import SourceError

PathLike = str | os.PathLike[str]

NAME = "adapter_config.json"

_SETS = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform")
_ABOUT_THE_FILE = ("save_only_topk_weights", "peft_version")
_ABOUT_THE_BASE = ("base_model_name_or_path", "revision")


def require_type(config: Mapping[str, Any], kind: str, file: PathLike) -> None:
    """Refuse a config of another kind of adapter.

    Raises:
        SourceError
    """
    if config.get("peft_type") != kind:
        raise SourceError(
            "another kind of adapter",
            file=file,
            part="peft_type",
            found=config.get("peft_type"),
            expected=kind,
        )


def base_of(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The base model's name and revision, as the config has them."""
    name, revision = (config.get(key) for key in _ABOUT_THE_BASE)
    return _text(name), _text(revision)


def canonical(config: Mapping[str, Any], adapter: Adapter) -> str | None:
    """What the packed form keeps of a config: one text for one meaning, None for nothing.

    Left out is what the adapter itself says (sizes, rank, base model), what belongs to the file it
    came from, and what `for_vblora` would write anyway; so unpacking and packing again changes
    nothing. So are nulls, which are PEFT's defaults: older versions refuse keys that they do not
    know. Lists that PEFT treats as sets are sorted.
    """
    implied = _implied(adapter)
    left_out = {*_ABOUT_THE_FILE, *_ABOUT_THE_BASE, *_sizes(adapter, 0)}
    kept = {}
    for key, value in config.items():
        plain = sorted(value, key=str) if key in _SETS and isinstance(value, list) else value
        if key in left_out or (plain is None and key not in implied):
            continue
        if key not in implied or implied[key] != plain:
            kept[key] = plain
    return _as_text(kept) if kept else None


def require_sizes(config: Mapping[str, Any], h: int, b: int) -> None:
    """Refuse a config that contradicts the vector bank.

    Raises:
        SourceError
    """
    for key, size in (("num_vectors", h), ("vector_length", b)):
        if config.get(key, size) != size:
            raise SourceError(
                "the config contradicts the vector bank",
                part=key,
                found=f"{config[key]} in {NAME}",
                expected=size,
            )


def for_vblora(adapter: Adapter, rank: int) -> dict[str, Any]:
    """The config with which PEFT loads the adapter as VB-LoRA in its top-k form."""
    config: dict[str, Any] = json.loads(adapter.config) if adapter.config else {}
    return {
        **_implied(adapter),
        **config,
        **_sizes(adapter, rank),
        "base_model_name_or_path": adapter.base_model,
        "revision": adapter.base_revision,
        "save_only_topk_weights": True,
    }


def _implied(adapter: Adapter) -> dict[str, Any]:
    """What is written where the source's config is silent."""
    return {
        **_about_extras(adapter, "vblora_only"),
        "inference_mode": True,
        "task_type": None,
        "target_modules": [module.name for module in adapter],
    }


def _sizes(adapter: Adapter, rank: int) -> dict[str, Any]:
    """What the adapter itself says, whatever the source's config said."""
    return {
        "peft_type": "VBLORA",
        "r": rank,
        "num_vectors": adapter.h,
        "vector_length": adapter.b,
        "topk": adapter.k,
        "fan_in_fan_out": any(module.fan_in_fan_out for module in adapter),
    }


def for_lora(adapter: LowRank, rank: int, *, extras: bool) -> dict[str, Any]:
    """The config with which PEFT, vLLM and llama.cpp's converter load the adapter as LoRA.

    One integer rank, alpha equal to it (scale 1), leaf names as targets: what every runtime takes.
    """
    config: dict[str, Any] = json.loads(adapter.config) if adapter.config else {}
    kept = {
        key: config[key]
        for key in ("exclude_modules", "layers_to_transform", "layers_pattern")
        if config.get(key) is not None
    }
    about_extras = _about_extras(adapter, "lora_only") if extras else {}
    return {
        "peft_type": "LORA",
        "task_type": config.get("task_type"),
        "base_model_name_or_path": adapter.base_model,
        "revision": adapter.base_revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted({module.name.rpartition(".")[2] for module in adapter.modules}),
        "fan_in_fan_out": any(module.fan_in_fan_out for module in adapter.modules),
        "bias": "none",
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        **kept,
        **about_extras,
    }


def _about_extras(adapter: LowRank, only: str) -> dict[str, Any]:
    """`bias` and `modules_to_save` that make PEFT expect the adapter's other tensors.

    A lone ``<name>.bias`` is a trained bias; everything else belongs to a module saved whole.
    """
    owners = {name.rpartition(".")[0] for name in adapter.tensors}
    biases = {
        owner
        for owner in owners
        if f"{owner}.bias" in adapter.tensors and f"{owner}.weight" not in adapter.tensors
    }
    named = json.loads(adapter.config).get("modules_to_save") if adapter.config else None
    saved = sorted(owners - biases)
    bias = "none" if not biases else only if biases <= {m.name for m in adapter.modules} else "all"
    return {"bias": bias, "modules_to_save": named or saved or None}


def _as_text(config: Mapping[str, Any]) -> str:
    return json.dumps(
        config, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
