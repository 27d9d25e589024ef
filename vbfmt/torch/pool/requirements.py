"""Check a pool's model and settings, and query the model's device."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from vbfmt.errors import ConfigError, ModelError
from vbfmt.torch.adapters import find_adapters
from vbfmt.torch.config import is_count, require_setting
from vbfmt.torch.pool.own_tensors import may_differ_by_sample
from vbfmt.torch.preconditions import require_can_add

BASE = "__base__"
"""The name that stands for no adapter, as in PEFT's `adapter_names`. None means the same."""

_POSITIONS_FIRST = frozenset({"fsmt", "led", "longformer", "xlnet"})
"""The architectures of transformers whose layers see (positions, samples, …). The shapes would not
show this if a batch had as many positions as samples."""

pools: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""The models that have a pool."""


def require_settings(limit: int | None, form: tuple[int, int, int] | None, source: object) -> None:
    """Check the settings of a pool.

    Raises:
        ConfigError: a setting is not valid.
    """
    fits = limit is None or is_count(limit)
    require_setting(fits, "limit", limit, "a number of bytes, or None")
    three = isinstance(form, Sequence) and len(form) == 3 and all(is_count(size) for size in form)
    require_setting(form is None or three, "form", form, "(rank, k, vector length)")
    require_setting(
        source is None or callable(source),
        "source",
        source,
        "a function from a name to an adapter or the path of a packed file",
    )


def wanted(names: Iterable[str | None]) -> list[str | None]:
    """Return the names of a batch's adapters, with None for the base alone.

    Raises:
        ConfigError: there are no names, or one is not a string.
    """
    found = [] if isinstance(names, str) or not isinstance(names, Iterable) else [*names]
    if not found or not all(name is None or isinstance(name, str) for name in found):
        raise ConfigError(
            "not the names of a batch's adapters", found=repr(names), expected="one per sample"
        )
    return [None if name == BASE else name for name in found]


def require_bare(model: nn.Module) -> None:
    """Check that a model is not wrapped, that neither it nor a module in it has adapters or a pool,
    and that its layers see samples first.

    Raises:
        ModelError: the model is wrapped, it or one of its modules has adapters or a pool, or its
            layers see positions first.
    """
    require_can_add(model, "default")
    if find_adapters(model) is not None:
        raise ModelError(
            "the model has an adapter", advice="eject it first: a pool serves the bare model"
        )
    for part in model.modules():
        if part in pools:
            raise ModelError("the model has a pool", advice="use that, or close it first")
        kind = getattr(getattr(part, "config", None), "model_type", None)
        if kind in _POSITIONS_FIRST:
            raise ModelError(
                "layers of this architecture see positions before samples, so samples cannot "
                "have different adapters",
                found=kind,
                advice="serve its adapters one at a time, with load_packed",
            )


def require_no_checkpointing(model: nn.Module) -> None:
    """Refuse gradient checkpointing, which computes layers again in the backward pass, after the
    batch.

    Raises:
        ModelError: the model uses gradient checkpointing.
    """
    if not (model.training and torch.is_grad_enabled()):
        return
    if any(getattr(each, "gradient_checkpointing", False) for each in model.modules()):
        raise ModelError(
            "gradient checkpointing computes layers again after the batch has ended",
            advice="model.gradient_checkpointing_disable(), or model.eval()",
        )


def device_of(modules: Mapping[str, nn.Module]) -> torch.device:
    """Return the device of the first layer.

    Raises:
        ModelError: there is no layer.
    """
    for module in modules.values():
        weight = module._parameters.get("weight")
        if weight is not None and may_differ_by_sample(module):
            return weight.device
    raise ModelError("the model has no linear layers to adapt")


def stream_of(device: torch.device) -> object:
    """Return the current stream of a GPU; None for other devices."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def forget_compiled() -> None:
    """Discard all code that torch.compile has compiled, because it would not call new hooks."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
