"""Merging the active adapter into the base's weights in memory, and undoing it exactly."""

from __future__ import annotations

from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from vbfmt.errors import ModelError
from vbfmt.torch.adapters import adapters_of
from vbfmt.torch.admixture import LowRankUpdate
from vbfmt.torch.injection import eject
from vbfmt.torch.linear import VBLoRALinear
from vbfmt.torch.overlooked import warn_of_layers_never_called
from vbfmt.torch.preconditions import require_in_memory
from vbfmt.torch.sharding import require_local
from vbfmt.torch.stand_ins import owner_of
from vbfmt.torch.wrapped import submodule


def merge(model: nn.Module) -> None:
    """Add ΔW of the active adapter to the base's weights: inference at the base's own speed.

    Added in float32, or in float64 if the weight or the adapter is, and rounded once to the
    weight's dtype. The weights as they were are kept, so
    that `unmerge` is exact; this takes the memory of the adapted weights once more.

    A weight that other modules use too (tied embeddings) stays for them what it was. Until
    `unmerge` the model has no state dict: loaded again, it would have ΔW twice. For merged weights
    in files there is ``vbfmt merge``.

    Warns:
        UserWarning: the model has never called a layer, so that its adapter did nothing until now.

    Raises:
        ModelError: no adapter is active, it is merged already, a weight is quantized,
            parametrized or offloaded, or ΔW is not finite; nothing is changed then.
    """
    adapters = adapters_of(model)
    adapters.adapter()
    if adapters.merged:
        raise ModelError("an adapter is merged already", advice="call unmerge(model) first")
    layers = adapters.layers(adapters.active or "")
    require_in_memory(adapters.root, layers)
    require_local("merge", {name: layer.weight for name, layer in layers.items()})
    warn_of_layers_never_called(adapters, None)
    merged: list[tuple[VBLoRALinear, Tensor]] = []
    for name, layer in layers.items():
        update = layer.update()
        if update is None:
            continue
        _require_plain(name, layer)
        weight = _with_update(layer, update)
        if not bool(weight.isfinite().all()):
            raise ModelError(
                "the merged weight is not finite",
                part=name,
                advice="the training run diverged, or the weight's dtype is too small",
            )
        merged.append((layer, weight))
    for layer, weight in merged:
        layer.before_merge = (cast(nn.Parameter, layer.weight),)
        layer.base_layer.weight = nn.Parameter(weight, requires_grad=False)


def merge_and_unload(model: nn.Module) -> nn.Module:
    """Merge the active adapter for good and take all adapters out: the base with other weights.

    Heads and biases of the active adapter stay in the model too.

    Returns:
        The model itself, changed in place.

    Raises:
        ModelError: as `merge`.
    """
    adapters = adapters_of(model)
    if not adapters.merged:
        merge(model)
    root, active = adapters.root, adapters.adapter()
    own = active.stand_ins.tensors(root)
    merged = {
        name: layer.weight
        for name, layer in adapters.all_layers().items()
        if layer.before_merge is not None
    }
    unmerge(model)
    eject(model)
    for name, weight in merged.items():
        submodule(root, name).weight = nn.Parameter(weight, requires_grad=False)
    for name, tensor in own.items():
        owner, leaf = owner_of(root, name)
        with torch.no_grad():
            getattr(owner, leaf).copy_(tensor)
    return root


def unmerge(model: nn.Module) -> None:
    """Put the base's weights back, bit for bit.

    Raises:
        ModelError: nothing is merged.
    """
    adapters = adapters_of(model)
    if not adapters.merged:
        raise ModelError("no adapter is merged")
    for layer in adapters.all_layers().values():
        if layer.before_merge is not None:
            (before,), merged = layer.before_merge, layer.weight
            if (before.device, before.dtype) != (merged.device, merged.dtype):
                before.data = before.data.to(merged)  # the model was moved meanwhile
            layer.base_layer.weight = before
            layer.before_merge = None


def _require_plain(name: str, layer: VBLoRALinear) -> None:
    if layer.base_layer._parameters.get("weight") is not layer.weight:
        raise ModelError(
            "a weight that is computed anew from others cannot be added to",
            part=name,
            found="a parametrization, such as weight_norm",
            advice="remove the parametrization first",
        )
    features = (layer.out_features, layer.in_features)
    expected = features[::-1] if layer.fan_in_fan_out else features
    plain = type(layer.weight) in (nn.Parameter, Tensor) and layer.weight.is_floating_point()
    if tuple(layer.weight.shape) != expected or not plain:
        raise ModelError(
            "a weight that cannot be added to",
            part=name,
            found=f"{type(layer.weight).__name__}, {layer.weight.dtype} "
            f"{tuple(layer.weight.shape)}",
            expected=f"floating point {expected}",
            advice="dequantize a quantized base first (model.dequantize() of transformers), or "
            "load it in its full precision",
        )


@torch.no_grad()
def _with_update(layer: VBLoRALinear, update: LowRankUpdate) -> Tensor:
    a, b = update.factors()
    dtype = reduce(torch.promote_types, (layer.weight.dtype, a.dtype, b.dtype), torch.float32)
    delta = b.to(dtype) @ a.to(dtype)
    total = layer.weight.to(dtype) + (delta.t() if layer.fan_in_fan_out else delta)
    return total.to(layer.weight.dtype)
