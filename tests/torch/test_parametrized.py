"""Logits that `torch.nn.utils.parametrize` computes from other parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tests.torch.models import batch, config, net
from vbfmt.errors import ModelError
from vbfmt.packed import digest
from vbfmt.torch import (
    adapters_of,
    get_adapter_state_dict,
    inject,
    load_checkpoint,
    load_packed,
    param_groups,
    save_checkpoint,
    save_packed,
    set_adapter_state_dict,
    to_adapter,
)


class Bounded(nn.Module):
    """A parametrization that bounds logits to −3 … 3."""

    def forward(self, logits):
        return 3 * torch.tanh(logits / 3)


@pytest.fixture
def bounded():
    torch.manual_seed(3)
    model = net()
    inject(model, config())
    for layer in adapters_of(model).all_layers().values():
        parametrize.register_parametrization(layer.updates["default"], "logits", Bounded())
    return model


def test_parametrized_logits_train_and_are_saved_with_their_values(bounded, tmp_path):
    groups = {group["name"]: group["params"] for group in param_groups(bounded)}
    assert all(each.is_leaf for each in groups["logits"])
    optimizer = torch.optim.AdamW(param_groups(bounded))
    before, losses = [each.detach().clone() for each in groups["logits"]], []
    for _ in range(5):
        x, y = batch()
        loss = nn.functional.cross_entropy(bounded(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not any(torch.equal(a, b) for a, b in zip(before, groups["logits"], strict=True))
    plain = net()
    save_checkpoint(bounded, tmp_path / "checkpoint")
    load_checkpoint(plain, tmp_path / "checkpoint")
    assert digest(to_adapter(plain)) == save_packed(bounded, tmp_path / "adapter.vblora")
    packed = net()
    load_packed(packed, tmp_path / "adapter.vblora")
    torch.testing.assert_close(packed(x), bounded(x))


def test_loading_into_parametrized_logits_is_refused(bounded, tmp_path):
    save_checkpoint(bounded, tmp_path / "checkpoint")
    for load in (
        lambda: load_checkpoint(bounded, tmp_path / "checkpoint"),
        lambda: set_adapter_state_dict(bounded, get_adapter_state_dict(bounded)),
    ):
        with pytest.raises(ModelError, match=r"a parametrization computes.*encoder\.0.*load first"):
            load()
