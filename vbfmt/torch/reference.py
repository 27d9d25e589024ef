"""Make a frozen copy of a model with its adapter, as the reference for DPO and similar methods."""

from __future__ import annotations

import copy

from torch import nn

from vbfmt.torch.adapters import adapters_of


def reference_model(model: nn.Module) -> nn.Module:
    """Return a frozen copy of a model with its active adapter.

    Only the active adapter's own parameters are copied; all other memory is shared. Use it for
    trainers that compare the model with its initial state: ``DPOTrainer(model,
    ref_model=reference_model(model), …)``. Without it, TRL uses the base without an adapter as the
    reference, which is wrong if training continues an adapter.

    Raises:
        ModelError: the model has no adapter, or one is merged.
    """
    adapters = adapters_of(model)
    adapters.require_unmerged()
    root = adapters.root
    kept = [p for p in root.parameters() if not p.requires_grad]
    shared = {id(tensor): tensor for tensor in (*kept, *root.buffers())}
    twin = copy.deepcopy(root, shared)
    return twin.requires_grad_(False).eval()
