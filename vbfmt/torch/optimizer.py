"""Parameter groups with the paper's learning rates."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from vbfmt.torch.adapters import adapters_of
from vbfmt.torch.training_warnings import warn_of_others_that_train

LR_LOGITS = 1e-2  # the paper's
LR_LOGITS_OF_SHARED = 4e-2


def param_groups(
    model: nn.Module,
    *,
    lr_bank: float = 1e-3,
    lr_logits: float | None = None,
    lr_rest: float = 4e-3,
    weight_decay: float | None = None,
    adapter_names: Collection[str] | None = None,
    sparse_logits: bool = False,
) -> list[dict[str, Any]]:
    """Return the active adapter's parameters for an optimizer: ``AdamW(param_groups(model))``.

    Args:
        lr_bank: learning rate of the bank; the default is the paper's (Tables 7 to 9).
        lr_logits: learning rate of the logits; by default the paper's 1e-2, but 4e-2 on banks with
            `train_unselected` (`VectorBank.from_seed`).
        lr_rest: learning rate of heads and biases; in the paper's Table 7 between 2e-3 and 2e-2.
        weight_decay: weight decay of all groups; by default, the optimizer's.
        adapter_names: train these adapters with one optimizer instead, for example on a shared
            bank. Call `set_adapter` before each batch. A shared bank appears only once.
        sparse_logits: mark the logits' group ``sparse=True``, for `LazyAdamW`, which updates only
            the logits that a pass has selected. Other optimizers ignore the mark.

    Returns:
        Up to three groups, each with its ``name``: bank, logits, rest.

    Warns:
        VbfmtWarning: a parameter is trainable but not part of any adapter.

    Raises:
        ModelError: there is no such adapter, none is active, it is merged, or it is a packed one,
            which cannot be trained.
    """
    adapters = adapters_of(model)
    if isinstance(adapter_names, str):
        adapter_names = [adapter_names]
    names = [adapters.active] if adapter_names is None else list(adapter_names)
    banks = [adapters.trainable(name).bank for name in names]
    adapters.require_unmerged()
    warn_of_others_that_train(adapters)
    if lr_logits is None:
        searched = all(bank.train_unselected for bank in banks)
        lr_logits = LR_LOGITS_OF_SHARED if searched else LR_LOGITS
    rates = {"bank": lr_bank, "logits": lr_logits, "rest": lr_rest}
    common = {} if weight_decay is None else {"weight_decay": weight_decay}
    groups: dict[str, dict[int, nn.Parameter]] = {}
    for name in names:
        for kind, parameters in adapters.parameters_of(name).items():
            groups.setdefault(kind, {}).update((id(each), each) for each in parameters)
    marks = {"logits": {"sparse": True}} if sparse_logits else {}
    return [
        {
            "params": list(parameters.values()),
            "lr": rates[kind],
            "name": kind,
            **common,
            **marks.get(kind, {}),
        }
        for kind, parameters in groups.items()
        if parameters
    ]
