"""Adapt transformers models: `save_pretrained` writes the adapter, and the Trainer accepts the
base."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from vbfmt._files import PathLike
from vbfmt.errors import ModelError
from vbfmt.torch.adapters import VBLoRA, find_adapters
from vbfmt.torch.saving import write_checkpoint

_HAS_ADAPTERS = "_hf_peft_config_loaded"
"""The attribute that tells transformers that a model has adapters. It then lets a quantized model
be trained, and makes the first block's inputs require gradients with gradient checkpointing."""


def adopt(model: nn.Module) -> None:
    """Make a transformers model's `save_pretrained` save the active adapter instead of the
    weights."""
    if callable(getattr(type(model), "save_pretrained", None)):
        model.__dict__["save_pretrained"] = partial(save_pretrained, model)
        if hasattr(type(model), _HAS_ADAPTERS):
            model.__dict__[_HAS_ADAPTERS] = True


def release(model: nn.Module) -> None:
    """Undo `adopt`."""
    for name in ("save_pretrained", _HAS_ADAPTERS):
        model.__dict__.pop(name, None)


def save_pretrained(
    model: nn.Module,
    save_directory: PathLike,
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    push_to_hub: bool = False,
    **_: Any,
) -> None:
    """Write the active adapter, not the base, as `save_checkpoint` does. Replace an earlier one.

    Args:
        state_dict: the model's gathered state dict, if the model is sharded.
        push_to_hub: must be False.

    Raises:
        ModelError: no adapter is active, it is a packed one, or `push_to_hub` is set.
    """
    adapters = find_adapters(model)
    if push_to_hub:
        raise ModelError(
            "save_pretrained of a model with adapters does not push to the Hub",
            advice="save to a folder, then: hf upload",
        )
    if not isinstance(adapters, VBLoRA) or adapters.active is None:
        raise ModelError(
            "save_pretrained writes the active adapter, and none is active",
            advice="call set_adapter(model, name); to write the base, eject(model) first",
        )
    write_checkpoint(
        model, save_directory, overwrite=True, write=is_main_process, values=state_dict
    )
