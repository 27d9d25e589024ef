"""Check that an adapter fits a model: its layers and its other tensors."""

from __future__ import annotations

from torch import nn

from vbfmt.adapter import Adapter
from vbfmt.errors import ModelError
from vbfmt.module import Module
from vbfmt.torch.linear import features_of, is_adaptable
from vbfmt.torch.stand_ins import shape_of
from vbfmt.torch.targets import base_modules

_SHOWN = 3


def matching_layers(model: nn.Module, adapter: Adapter) -> dict[str, nn.Module]:
    """Return the layers of the model that the adapter changes, by name.

    Raises:
        ModelError: a layer is missing or has another shape.
    """
    modules = dict(base_modules(model))
    faults = [fault for module in adapter if (fault := _mismatch(modules.get(module.name), module))]
    if faults:
        more = len(faults) - _SHOWN
        raise ModelError(
            "the adapter belongs to another model",
            found="; ".join(faults[:_SHOWN]) + (f"; and {more} more" if more > 0 else ""),
            expected=f"the layers of {adapter.base_model}" if adapter.base_model else None,
        )
    return {module.name: modules[module.name] for module in adapter}


def _mismatch(layer: nn.Module | None, module: Module) -> str | None:
    """Return how a layer differs from an adapter's module, or None if it fits."""
    if layer is None:
        return f"no {module.name}"
    if not is_adaptable(layer):
        return f"{module.name} is a {type(layer).__name__}"
    if features_of(layer) != (module.in_features, module.out_features):
        inner, outer = features_of(layer)
        return (
            f"{module.name} is {inner} → {outer}, not {module.in_features} → {module.out_features}"
        )
    return None


def require_tensors(model: nn.Module, adapter: Adapter) -> None:
    """Check that the model has the adapter's other tensors, in the same shapes.

    Raises:
        ModelError: a tensor is missing or has another shape.
    """
    for name, tensor in adapter.tensors.items():
        shape = shape_of(model, name)
        if shape != tensor.shape:
            raise ModelError(
                "the model does not have a tensor of the adapter, or has it in another shape",
                part=name,
                found=tensor.shape,
                expected=shape,
                advice="make the model with the head that the adapter was trained with",
            )
