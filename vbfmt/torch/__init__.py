"""VB-LoRA for PyTorch: train, resume, save packed.

>>> from vbfmt.torch import VBLoRAConfig, inject, param_groups, save_packed
>>> inject(model, VBLoRAConfig(r=4, num_vectors=90, vector_length=256))
>>> optimizer = torch.optim.AdamW(param_groups(model))
>>> ...                                              # your training loop, or transformers' Trainer
>>> save_packed(model, "adapter.vblora")

* adapters in a model: `inject`, `eject`, `set_adapter`, `disabled`, `merge`, `unmerge`
* to resume: `save_checkpoint`, `load_checkpoint` (PEFT's own form); in memory:
  `get_adapter_state_dict`, `set_adapter_state_dict`; the base's own: `get_base_state_dict`
* packed: `save_packed`, `to_adapter`, `load_packed`, `warm_start`
* many packed adapters in one batch: `AdapterPool`
* the parts, for models of your own: `VectorBank`, `VBLoRALinear`, `compose`
"""

from importlib.util import find_spec
from typing import Any

from vbfmt.errors import MissingExtraError

if find_spec("torch") is None:
    raise MissingExtraError.of("vbfmt.torch needs PyTorch", "torch")

from vbfmt.torch.adapter_state import get_adapter_state_dict, set_adapter_state_dict
from vbfmt.torch.adapters import VBLoRA, adapters_of, disabled, set_adapter
from vbfmt.torch.bank import VectorBank
from vbfmt.torch.checkpoint import load_checkpoint
from vbfmt.torch.composition import compose
from vbfmt.torch.config import VBLoRAConfig
from vbfmt.torch.injection import eject, inject
from vbfmt.torch.lazy_adamw import LazyAdamW
from vbfmt.torch.linear import VBLoRALinear
from vbfmt.torch.merging import merge, merge_and_unload, unmerge
from vbfmt.torch.optimizer import param_groups
from vbfmt.torch.own_layers import adopt
from vbfmt.torch.packed import load_packed, save_packed, to_adapter, warm_start
from vbfmt.torch.pool import AdapterPool
from vbfmt.torch.reference import reference_model
from vbfmt.torch.saving import save_checkpoint
from vbfmt.torch.state_dict import get_base_state_dict
from vbfmt.torch.status import (
    LayerStatus,
    layer_status,
    num_stored_parameters,
    num_trainable_parameters,
    print_trainable_parameters,
)
from vbfmt.torch.strategies import (
    GumbelSoftmax,
    NoisyTopK,
    ScheduledTopK,
    bank_usage,
    selection_entropy,
)

__all__ = [
    "AdapterPool",
    "GumbelSoftmax",
    "LayerStatus",
    "LazyAdamW",
    "NoisyTopK",
    "ScheduledTopK",
    "VBLoRA",
    "VBLoRACallback",
    "VBLoRAConfig",
    "VBLoRALinear",
    "VectorBank",
    "adapters_of",
    "adopt",
    "bank_usage",
    "compose",
    "disabled",
    "eject",
    "get_adapter_state_dict",
    "get_base_state_dict",
    "inject",
    "layer_status",
    "load_checkpoint",
    "load_packed",
    "merge",
    "merge_and_unload",
    "num_stored_parameters",
    "num_trainable_parameters",
    "param_groups",
    "print_trainable_parameters",
    "reference_model",
    "save_checkpoint",
    "save_packed",
    "selection_entropy",
    "set_adapter",
    "set_adapter_state_dict",
    "to_adapter",
    "unmerge",
    "warm_start",
]


def __getattr__(name: str) -> Any:
    """Import names that need transformers when they are first used."""
    if name == "VBLoRACallback":
        from vbfmt.torch.trainer import VBLoRACallback

        return VBLoRACallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
