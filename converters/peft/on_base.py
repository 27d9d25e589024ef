"""A LoRA folder that PEFT loads right on a base at hand, found by asking PEFT itself.

PEFT takes the keys of a LoRA for names in the base's files and renames them as transformers would
(`convert_peft_adapter_state_dict_for_transformers`). Where a name of the loaded model looks like
one that is to be renamed, its factors are lost. Here PEFT's own function is tried on every key,
with the base on PyTorch's meta device, and a key that it loses is written as the files name it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from vbfmt._files.peft_layout import config_of
from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.merge.base import json_object
from vbfmt.converters.names import loaded_model, targets
from vbfmt.converters.names.loaded_model import LoadedModel
from vbfmt.converters.peft import config as peft_config
from vbfmt.converters.peft.renamed import renamed_in
from vbfmt.converters.peft.skeleton import class_for_task
from vbfmt.errors import TargetError, VbfmtError, few, warn

PathLike = str | os.PathLike[str]

_ROOT = "base_model.model."
_NAME = "default"
_ROUNDS = 64
_MERGE = "merge the adapter into the base instead"


@dataclass(frozen=True)
class OnBase:
    """How an adapter is written for a base.

    Attributes:
        adapter: with the names that its modules have in the loaded model.
        experts: whether the base is a mixture-of-experts model, if that is known.
        names: module → its name in keys, where that is another one.
        checked: whether PEFT was asked.
    """

    adapter: LowRank
    experts: bool | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    checked: bool = False


def fitted(adapter: LowRank, base: PathLike) -> OnBase:
    """The adapter as PEFT must find it in a folder to load it on that base.

    Args:
        base: the base model's folder. Its config.json is read; no code of it is run.

    Warns:
        VbfmtWarning: PEFT could not be asked, or some keys have the names of the base's files.

    Raises:
        TargetError: the base lacks modules of the adapter, or PEFT cannot load it there.
        SourceError: no config.json.
    """
    config = json_object(os.path.join(base, "config.json"))
    names = [module.name for module in adapter.modules]
    models = list(_models(config, config_of(adapter)))
    if not models or targets.routed(names):
        what = "experts among the modules" if models else "transformers cannot build this base"
        doubt = targets.doubt(names)
        warn(f"what PEFT loads was not checked: {what}" + (f"; {doubt}" if doubt else ""))
        return OnBase(adapter)
    fitting = [(known, renamed_in(adapter, known)) for known in models]
    chosen = next(((k, given) for k, given in fitting if not _missing(k, given)), None)
    if chosen is None:
        known, given = fitting[0]
        missing = _missing(known, given)
        raise TargetError(
            "the base does not fit the adapter",
            part=missing[0],
            found=f"{len(missing)} of {len(names)} modules are not in {type(known.model).__name__}",
            expected="a layer for every module",
            advice="is it the right base? Leave `base` out to write the folder unchecked",
        )
    return _asked(*chosen)


def _models(config: Mapping[str, Any], adapter: Mapping[str, Any]) -> Iterator[LoadedModel]:
    """The base in the classes that the adapter may have been trained on, the likeliest first."""
    mapping = adapter.get("auto_mapping")
    trained = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    seen = set()
    for name in (trained, class_for_task(config, adapter.get("task_type")), None):
        known = loaded_model.build(config, {}, name)
        if known is not None and type(known.model) not in seen:
            seen.add(type(known.model))
            yield known


def _missing(known: LoadedModel, adapter: LowRank) -> list[str]:
    return [
        module.name
        for module in adapter.modules
        if known.shapes.get(f"{module.name}.weight")
        not in (
            (module.out_features, module.in_features),
            (module.in_features, module.out_features),
        )
    ]


def _asked(known: LoadedModel, adapter: LowRank) -> OnBase:
    """The names in keys by which PEFT finds every module."""
    experts = loaded_model.has_experts(known.model)
    adapted = _adapted(known.model, adapter, experts)
    wanted = [module.name for module in adapter.modules]
    names = {name: name for name in wanted}
    lost = _lost(adapted, names)
    if lost:
        lost = _found_under_other_names(adapted, known, names, lost)
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
            f"{len(other)} modules have the names of the base's files in the keys "
            f"({few(list(other.values()))}): PEFT with transformers 5 renames these when it loads "
            "them"
        )
    return OnBase(adapter, experts, other, checked=True)


def _adapted(model: Any, adapter: LowRank, experts: bool | None) -> Any:
    """The base with PEFT's empty LoRA layers, which must be the adapter's modules.

    Raises:
        TargetError: PEFT refuses it, or chooses other modules.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        return None
    settings = peft_config.for_lora(adapter, 1, extras=False, experts=experts)
    try:
        adapted: Any = get_peft_model(model, LoraConfig(**settings), low_cpu_mem_usage=True)
    except VbfmtError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever PEFT has against this base
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
    """Modules whose factors PEFT does not put where they belong, from keys with these names."""
    try:
        import torch
        from peft.utils.transformers_weight_conversion import (
            convert_peft_adapter_state_dict_for_transformers as convert,
        )
    except ImportError:  # PEFT before 0.19, or transformers 4: keys are taken as they are
        return [name for name, key in names.items() if name != key]
    given = {
        f"{_ROOT}{key}.lora_{factor}.weight": torch.full((1, 1), float(number))
        for number, key in enumerate(names.values())
        for factor in "AB"
    }
    with suppress(Exception):  # then nothing is loaded
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
    adapted: Any, known: LoadedModel, names: dict[str, str], lost: Sequence[str]
) -> list[str]:
    """Put names that PEFT finds the lost modules by into `names`; return those still lost."""
    waiting = {name: known.earlier(f"{name}.lora_A.weight") for name in lost}
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
