"""Merging the active adapter into the base's weights in memory, and undoing it exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vbfmt.errors import ModelError
from vbfmt.torch.adapters import adapters_of
from vbfmt.torch.admixture import LowRankUpdate
from vbfmt.torch.linear import VBLoRALinear


def merge(model: nn.Module) -> None:
    """Add ΔW of the active adapter to the base's weights: inference at the base's own speed.

    Added in float32 and rounded once to the weight's dtype. The weights as they were are kept, so
    that `unmerge` is exact; this takes the memory of the adapted weights once more.

    Raises:
        ModelError: no adapter is active, it is merged already, or ΔW is not finite; nothing is
            changed then.
    """
    adapters = adapters_of(model)
    adapters.adapter()
    if adapters.merged:
        raise ModelError("an adapter is merged already", advice="call unmerge(model) first")
    merged: list[tuple[VBLoRALinear, Tensor]] = []
    for name, layer in adapters.layers(adapters.active or "").items():
        update = layer.update()
        if update is None:
            continue
        weight = _with_update(layer, update)
        if not bool(weight.isfinite().all()):
            raise ModelError(
                "the merged weight is not finite",
                part=name,
                advice="the training run diverged, or the weight's dtype is too small",
            )
        merged.append((layer, weight))
    for layer, weight in merged:
        layer.weight_before_merge = layer.weight.data
        layer.weight.data = weight


def unmerge(model: nn.Module) -> None:
    """Put the base's weights back, bit for bit.

    Raises:
        ModelError: nothing is merged.
    """
    adapters = adapters_of(model)
    if not adapters.merged:
        raise ModelError("no adapter is merged")
    for layer in adapters.all_layers().values():
        if layer.weight_before_merge is not None:
            layer.weight.data = layer.weight_before_merge.to(layer.weight)
            layer.weight_before_merge = None


@torch.no_grad()
def _with_update(layer: VBLoRALinear, update: LowRankUpdate) -> Tensor:
    a, b = (factor.float() for factor in update.factors())
    delta = b @ a
    total = layer.weight.float() + (delta.t() if layer.fan_in_fan_out else delta)
    return total.to(layer.weight.dtype)
