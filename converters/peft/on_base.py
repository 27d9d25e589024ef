"""Choose the keys of a LoRA folder so that PEFT loads every layer on a given base.

PEFT renames the keys of a LoRA as transformers renames the names in the base's files
(`convert_peft_adapter_state_dict_for_transformers`). If PEFT renames a key that already has its
name in the loaded model, it loses the factors. So PEFT's own function is tried on every key, with
the base on PyTorch's meta device. A module that it loses gets a key with its name in the base's
files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from vbfmt._files import PathLike
from vbfmt._files.peft_layout import config_of
from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.merge.base import json_object
from vbfmt.converters.names import loaded_model, targets
from vbfmt.converters.names.loaded_model import LoadedModel
from vbfmt.converters.peft import config as peft_config
from vbfmt.converters.peft.renamed import renamed_in
from vbfmt.converters.peft.skeleton import class_for_task
from vbfmt.errors import TargetError, few, warn

_ROOT = "base_model.model."
_NAME = "default"
_ROUNDS = 64
_MERGE = "merge the adapter into the base instead"


@dataclass(frozen=True)
class OnBase:
    """An adapter, with the names for writing it as a LoRA folder for a base.

    Attributes:
        adapter: the adapter, with the names that its modules have in the loaded model.
        experts: whether the base is a mixture-of-experts model; None if unknown.
        names: module's name → the name in its keys, for modules where the two differ.
    """

    adapter: LowRank
    experts: bool | None = None
    names: Mapping[str, str] = field(default_factory=dict)


def fitted(adapter: LowRank, base: PathLike) -> OnBase:
    """Return an adapter with names that make PEFT load all of it on a base.

    Args:
        adapter: the adapter to write as LoRA.
        base: the base model's folder. Its config.json is read; no code in it is run.

    Warns:
        VbfmtWarning: it cannot be checked what PEFT loads, or some keys have names from the base's
            files.

    Raises:
        TargetError: the base lacks modules of the adapter, or PEFT cannot load them.
        SourceError: config.json is not a JSON object.
        StorageError: config.json cannot be read.
    """
    config = json_object(os.path.join(base, "config.json"))
    names = [module.name for module in adapter.modules]
    models = list(_models(config, config_of(adapter)))
    if not models or targets.routed(names):
        what = "experts among the modules" if models else "transformers cannot build this base"
        risk = targets.loading_risk(names)
        warn(f"what PEFT loads was not checked: {what}" + (f"; {risk}" if risk else ""))
        return OnBase(adapter)
    fitting = [(loaded, renamed_in(adapter, loaded)) for loaded in models]
    chosen = next(((k, given) for k, given in fitting if not _missing(k, given)), None)
    if chosen is None:
        loaded, given = fitting[0]
        missing = _missing(loaded, given)
        raise TargetError(
            "the base does not fit the adapter",
            part=missing[0],
            found=f"{len(missing)} of {len(names)} missing in {type(loaded.model).__name__}",
            expected="a layer for every module",
            advice="is it the right base? Leave `base` out to write the folder unchecked",
        )
    return _checked(*chosen)


def _models(config: Mapping[str, Any], adapter: Mapping[str, Any]) -> Iterator[LoadedModel]:
    """Yield the base, built as each class that the adapter may have been trained on, the likeliest
    first."""
    mapping = adapter.get("auto_mapping")
    trained = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    seen = set()
    for name in (trained, class_for_task(config, adapter.get("task_type")), None):
        loaded = loaded_model.build(config, {}, name)
        if loaded is not None and type(loaded.model) not in seen:
            seen.add(type(loaded.model))
            yield loaded


def _missing(loaded: LoadedModel, adapter: LowRank) -> list[str]:
    """Return the modules that the base lacks or has with another shape."""
    return [
        module.name
        for module in adapter.modules
        if loaded.shapes.get(f"{module.name}.weight")
        not in (
            (module.out_features, module.in_features),
            (module.in_features, module.out_features),
        )
    ]


def _checked(loaded: LoadedModel, adapter: LowRank) -> OnBase:
    """Return the adapter with names under which PEFT finds every module.

    Raises:
        TargetError: there is no such name for a module.
    """
    experts = loaded_model.has_experts(loaded.model)
    adapted = _adapted(loaded.model, adapter, experts)
    wanted = [module.name for module in adapter.modules]
    names = {name: name for name in wanted}
    lost = _lost(adapted, names)
    if lost:
        lost = _found_under_other_names(adapted, loaded, names, lost)
    if lost:
        raise TargetError(
            "PEFT loses layers of this LoRA when it loads it on this base: it renames their keys",
            part=lost[0],
            found=f"{len(lost)} of {len(wanted)} modules",
            advice=f"{_MERGE}, or load it with load_adapter",
        )
    other = {name: key for name, key in names.items() if name != key}
    if other:
        warn(
            f"the keys of {len(other)} modules contain the names in the base's files "
            f"({few(list(other.values()))}), which PEFT with transformers 5 renames when it loads "
            "them"
        )
    return OnBase(adapter, experts, other)


def _adapted(model: Any, adapter: LowRank, experts: bool | None) -> Any:
    """Return the base with PEFT's empty LoRA layers in the adapter's modules, or None without PEFT.

    Raises:
        TargetError: PEFT refuses the config, or adapts other modules.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        return None
    settings = peft_config.for_lora(adapter, 1, extras=False, experts=experts)
    try:
        adapted: Any = get_peft_model(model, LoraConfig(**settings), low_cpu_mem_usage=True)
    except Exception as error:  # noqa: BLE001 - PEFT may raise anything for a base
        raise TargetError(
            "PEFT refuses this LoRA on this base",
            found=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}",
            advice=_MERGE,
        ) from None
    layers = {
        name for name, layer in adapted.base_model.model.named_modules() if hasattr(layer, "lora_A")
    }
    differing = sorted(layers ^ {module.name for module in adapter.modules})
    if differing:
        raise TargetError(
            "PEFT adapts other modules of this base than the adapter's",
            part=differing[0],
            found="adapted" if differing[0] in layers else "not adapted",
            advice=_MERGE,
        )
    return adapted


def _lost(adapted: Any, names: Mapping[str, str]) -> list[str]:
    """Return the modules whose factors PEFT loses.

    Args:
        adapted: result of `_adapted`.
        names: module's name → the name in its keys.
    """
    try:
        import torch
        from peft.utils.transformers_weight_conversion import (
            convert_peft_adapter_state_dict_for_transformers as convert,
        )
    except ImportError:  # PEFT before 0.19, or transformers 4: it does not rename keys
        return [name for name, key in names.items() if name != key]
    given = {
        f"{_ROOT}{key}.lora_{factor}.weight": torch.full((1, 1), float(number))
        for number, key in enumerate(names.values())
        for factor in "AB"
    }
    with suppress(Exception):  # if PEFT raises, it loads none of them
        found: Any = convert(adapted, adapted.peft_config[_NAME], given, _NAME)
        return [
            name
            for number, name in enumerate(names)
            if any(
                (value := found.get(f"{_ROOT}{name}.lora_{factor}.weight")) is None
                or value.numel() != 1
                or value.item() != number
                for factor in "AB"
            )
        ]
    return list(names)


def _found_under_other_names(
    adapted: Any, loaded: LoadedModel, names: dict[str, str], lost: Sequence[str]
) -> list[str]:
    """Try other names for the lost modules until PEFT finds them.

    Names that PEFT finds are added to `names`. Return the modules that are still lost.
    """
    waiting = {name: loaded.earlier(f"{name}.lora_A.weight") for name in lost}
    suffix = ".lora_A.weight"
    for _ in range(_ROUNDS):
        taken = set(names.values())
        for name in list(waiting):
            key = next(waiting[name], None)
            if key is None:
                names[name] = name
                del waiting[name]
            elif key.endswith(suffix) and (plain := key.removesuffix(suffix)) not in taken:
                names[name] = plain
                taken.add(plain)
        still = set(_lost(adapted, names))
        waiting = {name: rest for name, rest in waiting.items() if name in still}
        if not waiting:
            break
    return _lost(adapted, names)
