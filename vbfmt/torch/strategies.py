"""Select vectors differently during training: the strategies of the paper's Table 5, or your own.

A strategy is a function. It gets the logits (N, h), k and the number of training passes so far, and
returns indices (N, k') with weights (N, k'), or None with weights (N, h) over the whole bank. It is
used in training mode only. In evaluation, and when an adapter is saved, selection is always the
softmax of the k largest logits. The paper's Select-All is top-k with ``topk=num_vectors``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vbfmt.torch.adapters import adapters_of

Selected = tuple["Tensor | None", Tensor]
Schedule = float | Callable[[int], float]


@dataclass(frozen=True)
class ScheduledTopK:
    """The softmax of the k largest logits, with a k or a temperature that changes during training.

    Attributes:
        topk: training pass → k; by default the config's k.
        temperature: the softmax temperature; a number, or training pass → number.
    """

    topk: Callable[[int], int] | None = None
    temperature: Schedule = 1.0

    def __call__(self, logits: Tensor, k: int, step: int) -> Selected:
        """Select."""
        count = k if self.topk is None else int(self.topk(step))
        top, indices = logits.topk(min(max(count, 1), logits.shape[1]), dim=1)
        return indices, (top / _now(self.temperature, step)).softmax(dim=1)


@dataclass(frozen=True)
class NoisyTopK:
    """The softmax of the k largest logits after adding normal noise.

    Attributes:
        std: standard deviation of the noise; a number, or training pass → number. Initial logits
            have a standard deviation of 0.1.
    """

    std: Schedule = 0.1

    def __call__(self, logits: Tensor, k: int, step: int) -> Selected:
        """Select."""
        noisy = logits + torch.randn_like(logits) * _now(self.std, step)
        top, indices = noisy.topk(k, dim=1)
        return indices, top.softmax(dim=1)


@dataclass(frozen=True)
class GumbelSoftmax:
    """Gumbel-softmax over the whole bank, or its straight-through variant.

    The noise has a standard deviation of 1.28, and the initial logits have one of 0.1. So at first,
    training hardly uses the vectors that evaluation selects: in a bank of 104 vectors, the two
    largest logits have 2.6 % of the weight. On film reviews, training worked with
    ``init_logits_std=3.0`` and ``lr_logits=0.1``. With ``init_logits_std`` of 0.1 or 1.0, it hardly
    worked at either learning rate (``python -m tests.examples.selection``).

    Attributes:
        temperature: a number, or training pass → number. The paper's Table 5 has 1/3.
        straight_through: use only the k largest perturbed logits in the forward pass, with the
            gradient of the Gumbel-softmax.
    """

    temperature: Schedule = 1.0
    straight_through: bool = False

    def __call__(self, logits: Tensor, k: int, step: int) -> Selected:
        """Select."""
        gumbel = -torch.empty_like(logits).exponential_().log()
        perturbed = (logits + gumbel) / _now(self.temperature, step)
        soft = perturbed.softmax(dim=1)
        if not self.straight_through:
            return None, soft
        top, indices = perturbed.topk(k, dim=1)
        hard = torch.zeros_like(soft).scatter(1, indices, top.softmax(dim=1))
        return None, hard.detach() - soft.detach() + soft


def selection_entropy(model: nn.Module, adapter_name: str | None = None) -> Tensor:
    """Return the mean entropy of the sub-vectors' softmax over the bank, in nats, differentiably.

    Add it to the loss with a positive factor to make selections sharper.

    Raises:
        ModelError: there is no such adapter, or it is a packed one.
    """
    return torch.cat(
        [-(p * p.clamp_min(1e-30).log()).sum(1) for p in _distributions(model, adapter_name)]
    ).mean()


def bank_usage(model: nn.Module, adapter_name: str | None = None) -> Tensor:
    """Return each vector's share of the sub-vectors' softmax, differentiably: (h,), with the sum 1.

    ``(usage * usage).sum() * h`` is 1 if all vectors are used equally, and h if only one is used.

    Raises:
        ModelError: there is no such adapter, or it is a packed one.
    """
    return torch.cat(_distributions(model, adapter_name)).mean(0)


def _distributions(model: nn.Module, adapter_name: str | None) -> list[Tensor]:
    updates = adapters_of(model).trainable(adapter_name).updates
    return [update.logits.softmax(dim=1) for update in updates.values()]


def _now(value: Any, step: int) -> float:
    return float(value(step) if callable(value) else value)
