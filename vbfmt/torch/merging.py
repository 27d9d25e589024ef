"""Merge adapters into the base's weights in memory, and undo it exactly."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from vbfmt.errors import ModelError, warn
from vbfmt.torch.adapters import VBLoRA, adapters_of
from vbfmt.torch.admixture import LowRankUpdate
from vbfmt.torch.injection import eject
from vbfmt.torch.linear import VBLoRALinear, called_elsewhere
from vbfmt.torch.preconditions import require_in_memory
from vbfmt.torch.sharding import require_local
from vbfmt.torch.stand_ins import owner_of, path_of
from vbfmt.torch.training_warnings import warn_of_layers_never_called

AdapterNames = Collection[str] | Mapping[str, float] | None
"""The adapters to add: a list of names, or name → factor; None for the active adapter."""


def merge(model: nn.Module, adapter_names: AdapterNames = None) -> None:
    """Add the active adapter's ΔW to the base's weights, so that inference is as fast as the
    base's.

    The sum is computed in float32 (in float64 if the weight or the adapter is float64) and rounded
    once to the weight's dtype. The original weights are kept, so that `unmerge` is exact; this
    takes as much memory as the adapted weights.

    If other modules share a weight (tied embeddings), it does not change for them. A merged model
    refuses to make a state dict, because ΔW would be added twice when it is loaded. To write merged
    weights to files, use ``vbfmt merge``.

    Args:
        adapter_names: add the sum of these adapters instead; a mapping gives their factors. Heads
            and biases cannot be summed, so only the active adapter may have them.

    Warns:
        VbfmtWarning: the model has never called a layer, so the adapter had no effect there until
            now.

    Raises:
        ModelError: no adapter is active; there is no such adapter; an inactive adapter has heads or
            biases; an adapter is merged already; a weight is quantized, parametrized or offloaded;
            the model also has an adapted module elsewhere, without the adapter; or the sum
            is not finite or too small for the weight's dtype. Nothing is changed then.
    """
    adapters = adapters_of(model)
    factors = _factors(adapters, adapter_names)
    if adapters.merged:
        raise ModelError(
            "an adapter is merged already",
            part=", ".join(adapters.merged_names),
            advice="call unmerge(model) first; several are merged in one call: "
            "merge(model, [name, …])",
        )
    layers = {name: layer for each in factors for name, layer in adapters.layers(each).items()}
    require_in_memory(adapters.root, layers)
    require_local("merge", {name: layer.weight for name, layer in layers.items()})
    _require_called_once(adapters.root, layers)
    for each in factors:
        warn_of_layers_never_called(adapters, each)
    merged: list[tuple[VBLoRALinear, Tensor]] = []
    for name, layer in layers.items():
        _require_plain(name, layer)
        merged.append((layer, _merged(name, layer, factors)))
    for layer, weight in merged:
        layer.before_merge = (cast(nn.Parameter, layer.weight),)
        layer.base_layer.weight = nn.Parameter(weight, requires_grad=False)
    adapters.merged_names = tuple(factors)


def _factors(adapters: VBLoRA, names: AdapterNames) -> dict[str, float]:
    """Return the factor of each adapter to merge.

    Raises:
        ModelError: there is no such adapter, or one that is not active has heads or biases.
    """
    if names is None:
        adapters.adapter()
        return {adapters.active or "": 1.0}
    if isinstance(names, str):
        names = [names]
    given = names if isinstance(names, Mapping) else dict.fromkeys(names, 1.0)
    factors = {name: float(factor) for name, factor in given.items()}
    if not factors:
        raise ModelError("no adapter is named", part="adapter_names", expected="at least one")
    for name in factors:
        if adapters.adapter(name).stand_ins.names and name != adapters.active:
            raise ModelError(
                "heads and biases of an adapter that is not active cannot be merged",
                part=f"adapter {name}",
                advice=f"call set_adapter(model, {name!r}) first; at most one of the adapters "
                "can have heads or biases",
            )
    stays = adapters.active is not None and adapters.active not in factors
    if stays and adapters.adapter().stand_ins.names:
        raise ModelError(
            "the active adapter is not merged, but its heads and biases would stay in the model",
            part=f"adapter {adapters.active}",
            advice=f"call set_adapter(model, {next(iter(factors))!r}) first",
        )
    return factors


def merge_and_unload(model: nn.Module, adapter_names: AdapterNames = None) -> nn.Module:
    """Merge the active adapter permanently, and remove all adapters from the model.

    Heads and biases of the active adapter stay in the model too.

    Args:
        adapter_names: as in `merge`. Adapters that are merged already stay merged.

    Returns:
        The model itself, changed in place.

    Warns:
        VbfmtWarning: as `merge`; or the adapter changes one of two tied parameters (the embedding
            and the output head), so they are no longer tied.

    Raises:
        ModelError: as `merge`.
    """
    adapters = adapters_of(model)
    if not adapters.merged:
        merge(model, adapter_names)
    root = adapters.root
    own = {} if adapters.active is None else adapters.adapter().stand_ins.tensors(root)
    merged = {
        name: layer.weight
        for name, layer in adapters.all_layers().items()
        if layer.before_merge is not None
    }
    unmerge(model)
    eject(model)
    names: dict[nn.Parameter, list[str]] = {}
    for path, parameter in root.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(path)
    tied = {parameter: paths for parameter, paths in names.items() if len(paths) > 1}
    del names, parameter  # the weights that are replaced can be freed
    for name, weight in merged.items():
        _keep(root, f"{name}.weight", weight.detach(), tied)
    for name, tensor in own.items():
        _keep(root, name, tensor.detach().clone(), tied)
    return root


def _keep(
    root: nn.Module, name: str, value: Tensor, tied: Mapping[nn.Parameter, list[str]]
) -> None:
    """Give a tensor of the base another value. A parameter that is tied to it keeps its own.

    Args:
        tied: parameter → its names, if it has several. `name` is removed from them.

    Warns:
        VbfmtWarning: they are no longer tied.
    """
    owner, leaf = owner_of(root, name)
    before = getattr(owner, leaf)
    if leaf in owner._buffers:
        before.copy_(value)
        return
    setattr(owner, leaf, nn.Parameter(value, before.requires_grad))
    paths = tied.get(before, [])
    if len(paths) > 1:
        warn(
            f"{' and '.join(paths)}: no longer tied, because the adapter changes one of them; set "
            f"tie_word_embeddings to False in the model's config before saving the model"
        )
        paths.remove(path_of(root, name))


def unmerge(model: nn.Module) -> None:
    """Restore the base's weights, bit for bit.

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
                before.data = before.data.to(merged)  # the model may have been moved since
            layer.base_layer.weight = before
            layer.before_merge = None
    adapters.merged_names = ()


def _require_called_once(root: nn.Module, layers: Mapping[str, VBLoRALinear]) -> None:
    """Refuse a layer whose weight the model also uses without the adapter."""
    for name, other in called_elsewhere(root, layers).items():
        raise ModelError(
            "the model has the same module under another name, without the adapter",
            part=name,
            found=f"the same module as {other}",
            expected="a module of its own; merging would change both",
            advice="make them different modules",
        )


def _require_plain(name: str, layer: VBLoRALinear) -> None:
    if layer.base_layer._parameters.get("weight") is not layer.weight:
        raise ModelError(
            "a weight that a parametrization computes cannot be merged into",
            part=name,
            found="a parametrization, such as weight_norm",
            advice="remove the parametrization first",
        )
    features = (layer.out_features, layer.in_features)
    expected = features[::-1] if layer.fan_in_fan_out else features
    plain = type(layer.weight) in (nn.Parameter, Tensor) and layer.weight.is_floating_point()
    one_byte = layer.weight.element_size() < 2  # float8, in which PyTorch cannot add
    if tuple(layer.weight.shape) != expected or not plain or one_byte:
        raise ModelError(
            "a weight that cannot be merged into",
            part=name,
            found=f"{type(layer.weight).__name__}, {layer.weight.dtype} "
            f"{tuple(layer.weight.shape)}",
            expected=f"floating point of 16 bits or more, {expected}",
            advice="dequantize a quantized base first (model.dequantize() of transformers), or "
            "load it in its full precision",
        )


@torch.no_grad()
def _with_updates(layer: VBLoRALinear, factors: Mapping[str, float]) -> Tensor:
    total = layer.weight
    for name, factor in factors.items():
        if name not in layer.updates:
            continue
        a, b = cast(LowRankUpdate, layer.updates[name]).factors()
        dtype = reduce(torch.promote_types, (total.dtype, a.dtype, b.dtype), torch.float32)
        delta = b.to(dtype) @ a.to(dtype)
        if factor != 1:
            delta = factor * delta
        total = total.to(dtype) + (delta.t() if layer.fan_in_fan_out else delta)
    return total


def _merged(name: str, layer: VBLoRALinear, factors: Mapping[str, float]) -> Tensor:
    """Return the sum of a layer's weight and ΔW in the weight's dtype.

    Raises:
        ModelError: it is not finite, or all values are too small for the dtype's precision.
    """
    total = _with_updates(layer, factors)
    weight = total.to(layer.weight.dtype)
    low, high = (each.item() for each in weight.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ModelError(
            "the merged weight is not finite",
            part=name,
            advice="the training run diverged, or the weight's dtype is too small",
        )
    least = torch.finfo(weight.dtype).smallest_normal
    if max(-low, high) < least and bool(total.any()) and total.dtype != weight.dtype:
        raise ModelError(
            f"all values of the merged weight are too small for {weight.dtype}",
            part=name,
            found=f"at most {total.abs().max():.3g}",
            expected=f"at least {least:.3g}",
            advice="load the model in bfloat16 or float32",
        )
    return weight
