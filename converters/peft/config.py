"""PEFT's ``adapter_config.json``, read and written for VB-LoRA and LoRA."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from vbfmt import storage
from vbfmt.adapter import Adapter
from vbfmt.errors import SourceError
from vbfmt.rules import is_json_object

NAME = "adapter_config.json"


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The config in a file.

    Raises:
        SourceError: not a JSON object.
        StorageError: it cannot be read.
    """
    text = bytes(storage.read(path, mmap=False)).decode(errors="replace")
    if not is_json_object(text):
        raise SourceError("not a JSON object", file=path)
    config: dict[str, Any] = json.loads(text)
    return config


def for_vblora(adapter: Adapter, rank: int) -> dict[str, Any]:
    """The config with which PEFT loads the adapter as VB-LoRA in its top-k form."""
    config: dict[str, Any] = json.loads(adapter.config) if adapter.config else {}
    if "target_modules" not in config:
        config["target_modules"] = [module.name for module in adapter]
    return {
        **_about_extras(adapter, "vblora_only"),
        "inference_mode": True,
        "task_type": None,
        **config,
        "peft_type": "VBLORA",
        "base_model_name_or_path": adapter.base_model,
        "revision": adapter.base_revision,
        "r": rank,
        "num_vectors": adapter.h,
        "vector_length": adapter.b,
        "topk": adapter.k,
        "fan_in_fan_out": any(module.fan_in_fan_out for module in adapter),
        "save_only_topk_weights": True,
    }


def for_lora(adapter: Adapter, rank: int, *, extras: bool) -> dict[str, Any]:
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
        "target_modules": sorted({module.name.rpartition(".")[2] for module in adapter}),
        "fan_in_fan_out": any(module.fan_in_fan_out for module in adapter),
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


def text(config: Mapping[str, Any]) -> bytes:
    """The file's content."""
    return (json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _about_extras(adapter: Adapter, only: str) -> dict[str, Any]:
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
    bias = "none" if not biases else only if biases <= {m.name for m in adapter} else "all"
    return {"bias": bias, "modules_to_save": named or saved or None}
