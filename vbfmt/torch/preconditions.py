"""Check that an adapter can be added: the model is not wrapped or offloaded, and the name is
free."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

from torch import nn

from vbfmt.errors import ConfigError, ModelError, few
from vbfmt.torch.adapters import TrainableAdapter, VBLoRA, find_adapter, find_adapters
from vbfmt.torch.linear import VBLoRALinear
from vbfmt.torch.targets import base_modules


def require_can_add(model: nn.Module, name: str) -> None:
    """Check that an adapter with this name can be added to the model.

    Raises:
        ConfigError: the name is not valid.
        ModelError: the model is wrapped, or has PEFT's layers or an adapter with this name.
    """
    fits = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]+", name)
    if not fits or hasattr(nn.ModuleDict(), name):  # such as "training"
        raise ConfigError(
            "not a name for an adapter", found=repr(name), expected="letters, digits, _ and -"
        )
    adapters = find_adapters(model)
    _require_bare(model, adapters)
    _require_no_others(model, adapters)
    present = find_adapter(model, name)
    if present is not None:
        kind = "a trainable" if isinstance(present, TrainableAdapter) else "a packed"
        raise ModelError(
            f"the model has {kind} adapter with that name",
            found=name,
            advice="choose another name, or eject that adapter first",
        )


def require_in_memory(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse modules whose weights accelerate has offloaded.

    Such weights are on the device "meta", which holds no values, and the adapter's tensors would be
    created there too.

    Raises:
        ModelError: a module is offloaded. Weights on "meta" without accelerate's hooks
            are accepted.
    """
    modules = dict(base_modules(model))
    away = [
        name
        for name in names
        if any(p.is_meta for p in modules[name]._parameters.values() if p is not None)
    ]
    if away and any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise ModelError(
            "the base's weights are offloaded",
            part=few(away),
            advice="load the model into memory, without device_map or offloading",
        )


def _require_bare(model: nn.Module, adapters: VBLoRA | None) -> None:
    """Refuse wrapped models, because a wrapper changes the names of all layers."""
    advice = "give the model itself and wrap it afterwards"
    wrapped = isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel)
    wrapped = wrapped or {*model._modules} in ({"_orig_mod"}, {"_fsdp_wrapped_module"})
    wrapped = wrapped or (adapters is not None and adapters.root is not model)
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(model, peft.PeftModel):
        wrapped, advice = True, "remove PEFT's adapter first: model = model.unload()"
    if wrapped:
        raise ModelError("the model is wrapped", found=type(model).__name__, advice=advice)


def _require_no_others(model: nn.Module, adapters: VBLoRA | None) -> None:
    """Refuse a model with PEFT's layers, or one that contains, or is part of, a model with
    adapters."""
    known = set() if adapters is None else set(adapters.adapters)
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    for name, part in model.named_modules():
        if tuners is not None and isinstance(part, tuners.BaseTunerLayer):
            raise ModelError(
                "the model has a PEFT adapter",
                part=name,
                found=type(part).__name__,
                advice="remove it first (model.delete_adapter, or PEFT's unload)",
            )
        another = isinstance(part, VBLoRA) and part is not adapters
        if another or (isinstance(part, VBLoRALinear) and not known.issuperset(part.updates)):
            raise ModelError(
                "the model contains, or is part of, another model with adapters",
                part=name,
                advice="inject into one model only, or eject the other's adapters first",
            )
