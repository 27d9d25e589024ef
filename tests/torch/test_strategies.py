"""Selection strategies: the paper's Table 5, schedules and custom functions."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.torch.models import batch, config, net
from vbfmt.errors import ConfigError, ModelError
from vbfmt.torch import (
    GumbelSoftmax,
    NoisyTopK,
    ScheduledTopK,
    adapters_of,
    bank_usage,
    get_adapter_state_dict,
    inject,
    load_packed,
    param_groups,
    save_packed,
    selection_entropy,
    set_adapter_state_dict,
)

STRATEGIES = {
    "top-k": {},
    "Select-All": {"topk": 16},
    "noisy top-k": {"selection": NoisyTopK(0.3)},
    "Gumbel-softmax": {"selection": GumbelSoftmax(lambda step: max(0.5, 1 - step / 10))},
    "straight-through": {"selection": GumbelSoftmax(0.5, straight_through=True)},
    "k from 8 to 2": {"selection": ScheduledTopK(lambda step: max(2, 8 - step), 0.7)},
    "own": {"selection": lambda logits, k, step: (None, logits.softmax(1))},
}


def made(name):
    torch.manual_seed(3)
    model = net()
    inject(model, config(**STRATEGIES[name]))
    return model


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_trains_and_packs_to_the_evaluated_model(tmp_path, name):
    model = made(name)
    optimizer, losses = torch.optim.AdamW(param_groups(model)), []
    x, y = batch(rows=32)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if name not in ("Gumbel-softmax", "straight-through"):  # too noisy for so few steps
        assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    save_packed(model, tmp_path / "adapter.vblora")
    other = net()
    load_packed(other, tmp_path / "adapter.vblora")
    torch.testing.assert_close(other.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_top_k_softmax_in_evaluation(name):
    model, plain = made(name), made("Select-All" if name == "Select-All" else "top-k")
    set_adapter_state_dict(plain, get_adapter_state_dict(model))
    x, _ = batch()
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_the_schedule_counts_training_passes():
    seen = []

    def selection(logits, k, step):
        seen.append(step)
        return ScheduledTopK()(logits, k, step)

    model = net()
    inject(model, config(selection=selection))
    x, _ = batch()
    for _ in range(3):
        model(x)
    with torch.no_grad():
        model.eval()(x)
    assert seen == [0, 1, 2]
    adapters_of(model).adapter().composition.training_passes = 10
    model.train()(x)
    assert seen[-1] == 10


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_that_would_draw_again_is_refused(reentrant):
    model = made("noisy top-k")
    x, _ = batch()
    hidden = checkpoint(model.encoder[0], x.requires_grad_(), use_reentrant=reentrant)
    with pytest.raises(ModelError, match="would select other vectors the second time"):
        hidden.sum().backward()


def test_entropy_and_usage_can_be_added_to_the_loss():
    model = made("top-k")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("logits"):
                parameter.zero_()
    assert selection_entropy(model).item() == pytest.approx(log(16))
    torch.testing.assert_close(bank_usage(model), torch.full((16,), 1 / 16))
    (selection_entropy(model) + bank_usage(model).square().sum()).backward()
    assert model.out.updates["default"].logits.grad is not None


def test_a_selection_may_be_any_function():
    with pytest.raises(ConfigError, match="selection: .*a function, or None"):
        config(selection="gumbel")
