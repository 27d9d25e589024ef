"""What would be lost without a word: layers that an adapter cannot reach, and tensors that train
but belong to no adapter."""

from __future__ import annotations

import sys
import warnings

from vbfmt.errors import few
from vbfmt.torch.adapters import VBLoRA


def warn_of_layers_never_called(adapters: VBLoRA, name: str | None, *, stacklevel: int = 3) -> None:
    """Warn of layers of an adapter that no pass through the model has called.

    Some models (WavLM's attention, Mamba's dt_proj) read a layer's weight and never call the
    layer: an adapter does nothing there until it is merged. Nothing is said before a whole pass,
    nor where anything was compiled: compiled layers do not count their calls.
    """
    dynamo = sys.modules.get("torch._dynamo.utils")
    if not adapters.passed or (dynamo is not None and dynamo.counters["frames"]):
        return
    layers = adapters.layers(name or adapters.active or "")
    dead = [key for key, layer in layers.items() if not layer.called]
    if dead:
        warnings.warn(
            f"{few(dead)}: never called by the model: it reads the weight itself, or did not need "
            f"the layer; where the adapter does nothing, leave it out by exclude_modules",
            stacklevel=stacklevel,
        )


def warn_of_others_that_train(adapters: VBLoRA, *, stacklevel: int = 3) -> None:
    """Warn of parameters that were unfrozen and belong to no adapter: none is saved with one."""
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
        warnings.warn(
            f"{few(others)}: to be trained, but of no adapter: not in the groups of param_groups "
            f"and not saved with an adapter; name their modules in modules_to_save instead",
            stacklevel=stacklevel,
        )
