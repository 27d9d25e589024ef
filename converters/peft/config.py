"""Check and create PEFT's ``adapter_config.json`` for VB-LoRA and LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vbfmt._files import PathLike
from vbfmt._files.peft_layout import CONFIG, NAMES_CODE, about_extras, config_of, implied, sizes
from vbfmt.adapter import Adapter
from vbfmt.converters._files.checkpoint import shown, size_in
from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.names import targets
from vbfmt.errors import SourceError


def require_type(config: Mapping[str, Any], kind: str, file: PathLike) -> None:
    """Refuse a config whose ``peft_type`` is not `kind`.

    Raises:
        SourceError: the config has another type.
    """
    if config.get("peft_type") != kind:
        raise SourceError(
            "another kind of adapter",
            file=file,
            part="peft_type",
            found=shown(config["peft_type"]) if "peft_type" in config else "nothing",
            expected=shown(kind),
        )


def require_size(config: Mapping[str, Any], key: str, size: int, whose: str) -> None:
    """Refuse a config whose value of `key` differs from `size`, which a trained tensor has.

    Raises:
        SourceError: the number in the config differs.
    """
    if key in config and size_in(CONFIG, key, config[key]) != size:
        raise SourceError(
            f"the config contradicts {whose}",
            part=key,
            found=f"{config[key]} in {CONFIG}",
            expected=size,
        )


def orientation(config: Mapping[str, Any]) -> bool:
    """Return ``fan_in_fan_out``: whether the base stores its weights transposed.

    Raises:
        SourceError: the value is not true, false or null, but for example ``"false"``.
    """
    value = config.get("fan_in_fan_out")
    if value is not None and not isinstance(value, bool):
        raise SourceError(
            "not a boolean",
            part="fan_in_fan_out",
            found=f"{shown(value)} in {CONFIG}",
            expected="true or false",
        )
    return bool(value)


def for_vblora(adapter: Adapter, rank: int) -> dict[str, Any]:
    """Return the config with which PEFT loads the adapter as VB-LoRA in its top-k form.

    Args:
        adapter: the adapter. Values in its own config are kept if they do not contradict the
            adapter.
        rank: the rank r of all modules.
    """
    config = config_of(adapter)
    config.pop(NAMES_CODE, None)  # an untrusted file must not choose code
    return {
        **implied(adapter),
        **config,
        **sizes(adapter, rank),
        "base_model_name_or_path": adapter.base_model,
        "revision": adapter.base_revision,
        "save_only_topk_weights": True,
    }


def for_lora(
    adapter: LowRank, rank: int, *, extras: bool, experts: bool | None = None
) -> dict[str, Any]:
    """Return the config with which PEFT, vLLM and llama.cpp's converter load the adapter as LoRA.

    All modules have the same rank, alpha equals the rank (so the scale is 1), and targets are full
    names.

    Args:
        adapter: the factors and other trained tensors that are written.
        rank: the rank of all factors.
        extras: whether biases and heads are written too.
        experts: whether the base is a mixture-of-experts model; None if unknown.
    """
    config = config_of(adapter)
    target = targets.exact([module.name for module in adapter.modules], experts=experts)
    return {
        "peft_type": "LORA",
        "task_type": config.get("task_type"),
        "base_model_name_or_path": adapter.base_model,
        "revision": adapter.base_revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": list(target.modules),
        **({"target_parameters": list(target.parameters)} if target.parameters else {}),
        "fan_in_fan_out": any(module.fan_in_fan_out for module in adapter.modules),
        "bias": "none",
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        **(_about_extras(adapter) if extras else {}),
    }


def _about_extras(adapter: LowRank) -> dict[str, Any]:
    """Return `bias` and `modules_to_save` of a LoRA.

    In a sum of adapters, one adapter may have fully trained a module that another one adapts. Such
    a module is not in `modules_to_save`, because PEFT cannot load a module that is in both lists.
    PEFT then loads the trained weight into the adapted layer.
    """
    found = about_extras(adapter, "lora_only")
    whole = [m.name for m in adapter.modules if f"{m.name}.weight" in adapter.tensors]
    saved = [
        name
        for name in found["modules_to_save"] or []
        if not any(f".{module}".endswith(f".{name}") for module in whole)
    ]
    return {**found, "modules_to_save": saved or None}
