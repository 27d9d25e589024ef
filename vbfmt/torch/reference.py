"""A frozen copy of a model with its adapter: the reference for DPO and similar methods."""

from __future__ import annotations

import copy

from torch import nn

from vbfmt.torch.adapters import adapters_of


def reference_model(model: nn.Module) -> nn.Module:
    """Return a frozen copy of a model that computes what it computes now, with its active adapter.

    The copy shares the memory of everything that does not train; only the active adapter's own
    parameters are copied. For trainers that compare a model with its state at the start:
    ``DPOTrainer(model, ref_model=reference_model(model), …)``. Without it, TRL loads the bare base
    as the reference, which is another model where training starts from an adapter.

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
