"""Check layer by layer that PEFT has loaded an adapter's values, and restore lost values.

PEFT renames the keys of a LoRA as transformers renames tensors on the disk
(`convert_peft_adapter_state_dict_for_transformers`). If PEFT renames a key that already has its
name in the loaded model, it loses the factors, with a warning at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vbfmt.adapter import Adapter
from vbfmt.converters import lora
from vbfmt.converters._files.checkpoint import FLOATS
from vbfmt.converters.lowrank import LowRank
from vbfmt.errors import TargetError
from vbfmt.tensors import TORCH, Tensor

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

_TOLERANCE = 0.02
"""Largest accepted error of PEFT's own ΔW, relative to its largest element."""
_ADVICE = "merge the adapter into its base instead, or load it with form='vblora'"


def require_lora_loaded(model: PeftModel, adapter: LowRank, adapter_name: str) -> None:
    """Check that PEFT's LoRA layers have the adapter's factors, and restore lost factors.

    In other LoRA layers, B must be zero. The model must have the adapter's other trained tensors.

    Args:
        model: PEFT's model.
        adapter: the adapter, with the names that its modules have in the model.
        adapter_name: PEFT's name for the adapter.

    Raises:
        TargetError: the model does not compute the adapter's updates, or its dtype cannot represent
            a trained tensor. The error names the first part that differs.
    """
    import torch

    bare: Any = model.base_model.model
    layers = {
        name: layer
        for name, layer in bare.named_modules()
        if hasattr(layer, "lora_A") and adapter_name in layer.lora_A
    }
    rank = lora.rank_of(adapter)
    for module, a, b in lora.padded_factors(adapter, rank):
        layer = layers.pop(module.name, None)
        if layer is None:
            raise _not_loaded(module.name, "no LoRA layer")
        for factor, wanted in ((layer.lora_A, a), (layer.lora_B, b)):
            weight = factor[adapter_name].weight
            shape, scale = tuple(weight.shape), layer.scaling[adapter_name]
            if shape != wanted.shape or scale != 1:
                raise _not_loaded(module.name, f"a LoRA layer of shape {shape} and scale {scale}")
            values = torch.from_numpy(wanted.copy()).to(weight.device, weight.dtype)
            if not torch.equal(weight.detach(), values):
                with torch.no_grad():
                    weight.copy_(values)
    for name, layer in layers.items():
        if torch.count_nonzero(layer.lora_B[adapter_name].weight):
            raise _not_loaded(name, "a LoRA layer that the adapter does not have")
    _require_trained(bare, adapter, adapter_name)


def require_vblora_loaded(model: PeftModel, adapter: Adapter, adapter_name: str) -> None:
    """Check that PEFT's own VB-LoRA layers compute the adapter's ΔW, and that there are no others.

    PEFT composes ΔW in the model's dtype, so its elements may differ by 2 % of the largest.

    Args:
        model: PEFT's model.
        adapter: the adapter.
        adapter_name: PEFT's name for the adapter.

    Raises:
        TargetError: as `require_lora_loaded`.
    """
    import torch

    bare: Any = model.base_model.model
    layers = {
        name: layer
        for name, layer in bare.named_modules()
        if hasattr(layer, "vblora_logits_A") and adapter_name in layer.vblora_logits_A
    }
    for module, a, b in adapter.iter_factors():
        layer = layers.pop(module.name, None)
        if layer is None:
            raise _not_loaded(module.name, "no VB-LoRA layer")
        with torch.no_grad():
            found = layer.get_delta_weight(adapter_name).float().cpu().numpy()
        wanted = b @ a
        found = found.T if module.fan_in_fan_out else found
        bound = _TOLERANCE * float(np.abs(wanted).max())
        if found.shape != wanted.shape or not (np.abs(found - wanted) <= bound).all():
            raise _not_loaded(module.name, "another ΔW")
    if layers:
        raise _not_loaded(next(iter(layers)), "a VB-LoRA layer that the adapter does not have")
    _require_trained(bare, adapter, adapter_name)


def _require_trained(bare: Any, adapter: LowRank, adapter_name: str) -> None:
    """Check that the model has the adapter's other trained tensors, which its dtype represents."""
    import torch

    for name, tensor in adapter.tensors.items():
        found = _trained(bare, name, adapter_name)
        if found is None or tuple(found.shape) != tensor.shape:
            raise _not_loaded(name, "no such tensor" if found is None else tuple(found.shape))
        dtype = str(found.dtype).removeprefix("torch.")
        if tensor.dtype in FLOATS and dtype in lora.DTYPES:
            wider = "bfloat16" if dtype == "float16" else "float32"
            values, code = lora.finite_values(tensor), lora.DTYPES[dtype]
            lora.require_range(values, code, name, advice=f"load the model in {wider}")
        wanted = as_torch(tensor).to(found.device, found.dtype)
        if not torch.equal(found.detach().nan_to_num(), wanted.nan_to_num()):
            raise _not_loaded(name, "other values")


def as_torch(tensor: Tensor) -> torch.Tensor:
    """Return a copy of a tensor as PyTorch's."""
    import torch

    name = next(name for name, code in TORCH.items() if code == tensor.dtype)
    flat = torch.from_numpy(tensor.data.copy()).view(getattr(torch, name))
    return flat.reshape(tensor.shape)


def _trained(bare: Any, name: str, adapter_name: str) -> Any:
    """Return the tensor with this name that the model uses with the adapter, or None."""
    owner = bare
    *path, leaf = name.split(".")
    for part in path:
        owner = getattr(owner, part, None)
        saved = getattr(owner, "modules_to_save", None)
        if saved is not None and adapter_name in saved:
            owner = saved[adapter_name]
        owner = getattr(owner, "base_layer", owner)
    return getattr(owner, leaf, None)


def _not_loaded(part: str, found: object) -> TargetError:
    return TargetError(
        "PEFT has not loaded the adapter's values",
        part=part,
        found=found,
        expected="the adapter's own values",
        advice=_ADVICE,
    )
