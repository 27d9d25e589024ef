"""Register models that were built from `VBLoRALinear` and `VectorBank` without `inject`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import nn

from vbfmt.errors import ConfigError, ModelError
from vbfmt.torch.adapters import TrainableAdapter, VBLoRA, adapted_layers, find_adapters
from vbfmt.torch.admixture import Admixture
from vbfmt.torch.config import VBLoRAConfig
from vbfmt.torch.injection import install
from vbfmt.torch.peft_config import rank_pattern_of
from vbfmt.torch.stand_ins import StandIns

_OWN = "default"
"""The name that `VBLoRALinear` gives to its update."""


def adopt(model: nn.Module, *, task_type: str | None = None) -> VBLoRA:
    """Register the `VBLoRALinear` layers of a model as one adapter, ``default``.

    Afterwards, `save_checkpoint`, `save_packed`, `param_groups` and all other functions work as
    after `inject`, and sub-vectors are composed once per forward pass. Other parameters stay
    trainable or frozen.

    Args:
        task_type: the config's `task_type`, one of PEFT's names.

    Returns:
        The model's adapters, ``model.vblora``.

    Raises:
        ModelError: the model has adapters already, or no such layers.
        ConfigError: the layers have different banks or different k.
    """
    if find_adapters(model) is not None:
        raise ModelError("the model has adapters already", advice="to add another one, call inject")
    layers = adapted_layers(model)
    updates = {
        name: cast(Admixture, layer.updates[_OWN])
        for name, layer in layers.items()
        if _OWN in layer.updates
    }
    if not updates:
        raise ModelError(
            "the model has no VB-LoRA layers",
            expected="VBLoRALinear(layer, bank) among its modules",
            advice="to adapt the layers of a model: inject(model, config)",
        )
    config = _config(updates, task_type)
    requires_grad = {name: p.requires_grad for name, p in model.named_parameters()}
    bank = next(iter(updates.values())).bank
    for name in updates:
        layers[name].name = name
    adapter = TrainableAdapter(config, bank, updates, StandIns.trainable(model, []))
    adapters = install(model, _OWN, adapter)
    for name, parameter in model.named_parameters():
        if name in requires_grad:
            parameter.requires_grad_(requires_grad[name])
    return adapters


def _config(updates: Mapping[str, Admixture], task_type: str | None) -> VBLoRAConfig:
    """Return the config that describes these layers."""
    banks = {id(update.bank): update.bank for update in updates.values()}
    several = {update.topk for update in updates.values()}
    if len(banks) > 1 or len(several) > 1:
        raise ConfigError(
            "one adapter has one bank and one k",
            found=f"{len(banks)} banks, k = {', '.join(map(str, sorted(several)))}",
            advice="give all layers the same VectorBank and topk",
        )
    ((_, bank),) = banks.items()
    ranks = {name: update.rank for name, update in updates.items()}
    return VBLoRAConfig(
        r=next(iter(ranks.values())),
        num_vectors=bank.num_vectors,
        vector_length=bank.vector_length,
        topk=several.pop(),
        target_modules=list(updates),
        rank_pattern=rank_pattern_of(ranks),
        task_type=task_type,
    )
