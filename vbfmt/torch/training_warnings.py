"""Warn about adapted layers that have no effect, and about trainable tensors of no adapter."""

from __future__ import annotations

import sys

from vbfmt.errors import few, warn
from vbfmt.torch.adapters import VBLoRA
from vbfmt.torch.linear import called_elsewhere


def warn_of_layers_never_called(adapters: VBLoRA, name: str | None) -> None:
    """Warn about layers of an adapter that no forward pass has called.

    Some models (WavLM's attention, Mamba's dt_proj) read a layer's weight and never call the layer:
    an adapter has no effect there until it is merged. There is no warning before the first complete
    pass, and none for a compiled model, whose layers do not record calls.
    """
    dynamo = sys.modules.get("torch._dynamo.utils")
    if not adapters.has_run or (dynamo is not None and dynamo.counters["frames"]):
        return
    dead = [key for key, layer in adapters.layers(name).items() if not layer.called]
    if dead:
        warn(
            f"{few(dead)}: these layers were never called, so the adapter has no effect there; "
            f"add them to exclude_modules"
        )


def warn_of_shared_layers(adapters: VBLoRA, name: str) -> None:
    """Warn about adapted layers that the model also calls under other names.

    As in PEFT, calls under the other names do not use the adapter.
    """
    for key, other in called_elsewhere(adapters.root, adapters.layers(name)).items():
        warn(
            f"{key}: the model has the same module as {other}, too, where the adapter has no "
            f"effect; make them different modules, or add {key} to exclude_modules"
        )


def warn_of_others_that_train(adapters: VBLoRA) -> None:
    """Warn about trainable parameters that belong to no adapter and so will not be saved."""
    own = {
        id(parameter)
        for name in adapters.adapters
        for parameters in adapters.parameters_of(name).values()
        for parameter in parameters
    }
    others = [
        name
        for name, parameter in adapters.root.named_parameters()
        if parameter.requires_grad and id(parameter) not in own
    ]
    if others:
        warn(
            f"{few(others)}: trainable, but not part of any adapter: not in the groups of "
            f"param_groups, and will not be saved; name their modules in modules_to_save"
        )
