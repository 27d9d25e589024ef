"""Parameter groups with the paper's learning rates."""

from __future__ import annotations

from typing import Any

from torch import nn

from vbfmt.errors import ModelError
from vbfmt.torch.adapters import adapters_of
from vbfmt.torch.overlooked import warn_of_others_that_train


def param_groups(
    model: nn.Module,
    *,
    lr_bank: float = 1e-3,
    lr_logits: float = 1e-2,
    lr_rest: float = 4e-3,
    weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """What the active adapter trains, for any torch optimizer: ``AdamW(param_groups(model))``.

    Args:
        lr_bank, lr_logits: the paper's for all experiments (Tables 7 to 9).
        lr_rest: of heads and biases; in the paper's Table 7 between 2e-3 and 2e-2, by task.
        weight_decay: of all groups; by default the optimizer's own.

    Returns:
        Up to three groups, each with its ``name``: bank, logits, rest.

    Warns:
        UserWarning: something is to be trained that no adapter has.

    Raises:
        ModelError: no adapter is active, it is merged, or it is a packed one, which cannot be
            trained.
    """
    adapters = adapters_of(model)
    if not adapters.adapter().trainable:
        raise ModelError(
            "a packed adapter cannot be trained: it holds no logits",
            part=f"adapter {adapters.active}",
            advice="resume from a checkpoint (load_checkpoint), or start anew from it: warm_start",
        )
    adapters.require_unmerged()
    warn_of_others_that_train(adapters)
    rates = {"bank": lr_bank, "logits": lr_logits, "rest": lr_rest}
    common = {} if weight_decay is None else {"weight_decay": weight_decay}
    groups = adapters.parameters_of(adapters.active or "")
    return [
        {"params": parameters, "lr": rates[name], "name": name, **common}
        for name, parameters in groups.items()
        if parameters
    ]
