"""Convert a trainable adapter's config to PEFT's form, with targets that match exactly its
modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from vbfmt.torch.adapters import TrainableAdapter, VBLoRA
from vbfmt.torch.targets import base_modules, matches, saved_by_peft


def peft_config(adapters: VBLoRA, name: str | None) -> dict[str, Any]:
    """Return the adapter's config in PEFT's form, with targets that match exactly its modules.

    Raises:
        ModelError: the adapter is a packed one.
    """
    adapter, layers = adapters.trainable(name), adapters.layers(name)
    ranks = {key: update.rank for key, update in adapter.updates.items()}
    known = getattr(adapters.root, "name_or_path", None)
    config = replace(
        adapter.config,
        target_modules=_exact_targets(adapters.root, list(layers)),
        exclude_modules=(),
        modules_to_save=_exactly_saved(adapters.root, adapter),
        layers_to_transform=(),
        layers_pattern=(),
        rank_pattern=rank_pattern_of(ranks),
        base_model_name_or_path=adapter.config.base_model_name_or_path
        or (known if isinstance(known, str) else None)
        or None,
    )
    if len(set(ranks.values())) == 1:
        config = replace(config, r=next(iter(ranks.values())))
    fan_in_fan_out = all(layer.fan_in_fan_out_in_files for layer in layers.values())
    return {**config.as_peft(), "fan_in_fan_out": fan_in_fan_out}


def rank_pattern_of(ranks: Mapping[str, int]) -> dict[str, int]:
    """Return module → rank if the ranks differ, else an empty dict."""
    return dict(ranks) if len({*ranks.values()}) > 1 else {}


def _exact_targets(root: nn.Module, layers: list[str]) -> str | list[str]:
    """Return targets that match only these layers: last components, full names, or an
    expression."""
    everything = [name for name, _ in base_modules(root) if name]
    leaves = sorted({name.rpartition(".")[2] for name in layers})
    for targets in (leaves, sorted(layers)):
        if [name for name in everything if matches(name, targets)] == layers:
            return targets
    return "|".join(re.escape(name) for name in sorted(layers))


def _exactly_saved(root: nn.Module, adapter: TrainableAdapter) -> list[str]:
    """Return the full names of the fully trained modules. In PEFT, they match no other modules."""
    saved = saved_by_peft(root, adapter.config.modules_to_save)
    names = adapter.stand_ins.names
    return [module for module in saved if any(name.startswith(f"{module}.") for name in names)]
