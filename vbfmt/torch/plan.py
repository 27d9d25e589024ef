"""Decide what `inject` will do, before the model changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from vbfmt.torch.config import VBLoRAConfig
from vbfmt.torch.preconditions import require_in_memory
from vbfmt.torch.sharding import require_adaptable, require_local
from vbfmt.torch.stand_ins import names_to_train, tensor_of
from vbfmt.torch.targets import (
    base_modules,
    find_targets,
    left_out,
    modules_to_save,
    rank_of,
    unmatched,
)


@dataclass(frozen=True)
class Plan:
    """The plan of a new adapter.

    Attributes:
        config: the config, with full names in `modules_to_save`.
        layers: the layers to adapt, by name, in the model's order.
        ranks: their ranks, by name.
        tensors: the names of the base's other tensors that are trained: biases and heads.
        warnings: warnings about settings that match nothing.
    """

    config: VBLoRAConfig
    layers: Mapping[str, nn.Module]
    ranks: Mapping[str, int]
    tensors: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def resolve(model: nn.Module, config: VBLoRAConfig) -> Plan:
    """Return the plan for a config.

    Raises:
        ModelError: there is no target, a target is not a linear layer, or weights are offloaded.
        ConfigError: b does not divide a target's features.
    """
    saved = modules_to_save(model, config)
    layers = find_targets(model, config, saved)
    config = replace(config, modules_to_save=saved)
    modules = dict(base_modules(model))
    tensors = names_to_train(modules, whole=saved, bias=config.bias, targets=layers)
    warnings = [*unmatched(model, config, layers), *left_out(model, config, layers)]
    return exact(model, config, layers, tensors, warnings=warnings)


def exact(
    model: nn.Module,
    config: VBLoRAConfig,
    layers: Mapping[str, nn.Module],
    tensors: Iterable[str],
    *,
    warnings: Iterable[str] = (),
) -> Plan:
    """Return the plan for exactly these layers and other tensors of the base.

    Raises:
        ModelError: weights are offloaded.
    """
    tensors = tuple(tensors)
    owners = {name.rpartition(".")[0] for name in tensors}
    require_in_memory(model, [*layers, *owners])
    require_adaptable(model, layers)
    own = {name: tensor_of(model, name) for name in tensors}
    require_local("train heads and biases of the base", own)
    ranks = {name: rank_of(name, config) for name in layers}
    return Plan(config, dict(layers), ranks, tensors, tuple(warnings))
