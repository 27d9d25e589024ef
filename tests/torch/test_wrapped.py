"""Layers wrapped by torch.compile or activation checkpointing: adapters have names without
wrappers."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from tests.torch.models import batch, config, net
from vbfmt import load
from vbfmt.torch import (
    eject,
    inject,
    load_checkpoint,
    load_packed,
    merge,
    save_checkpoint,
    save_packed,
)

SETTINGS = {"modules_to_save": ["classifier"], "bias": "all"}


def compiled(module):
    return torch.compile(module, backend="eager")


class Outer(torch.nn.Module):
    """A model whose layers are all inside a part that can be wrapped."""

    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x):
        return self.body(x)


def wrap(model, how):
    """Wrap an adapted layer, and the part that contains it."""
    model.body.encoder[0] = how(model.body.encoder[0])
    model.body = how(model.body)
    return model


def base():
    torch.manual_seed(9)
    return Outer()


def injected(model):
    torch.manual_seed(9)
    inject(model, config(**SETTINGS))
    return model


def wrap_layer(model, how):
    model.body.encoder[0] = how(model.body.encoder[0])
    return model


WAYS = {
    "one layer compiled before": lambda: injected(wrap_layer(base(), compiled)),
    "one layer compiled after": lambda: wrap_layer(injected(base()), compiled),
    "compiled before": lambda: injected(wrap(base(), compiled)),
    "compiled after": lambda: wrap(injected(base()), compiled),
    "checkpoint-wrapped before": lambda: injected(wrap(base(), checkpoint_wrapper)),
    "checkpoint-wrapped after": lambda: wrap(injected(base()), checkpoint_wrapper),
}


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def wrapped(request):
    torch.compiler.reset()
    yield request.param()
    torch.compiler.reset()


def test_packed_bytes_and_checkpoints_equal_those_of_the_plain_model(wrapped, tmp_path):
    plain = injected(base())
    save_packed(plain, tmp_path / "plain.vblora")
    save_packed(wrapped, tmp_path / "wrapped.vblora")
    assert (tmp_path / "wrapped.vblora").read_bytes() == (tmp_path / "plain.vblora").read_bytes()
    save_checkpoint(plain, tmp_path / "plain")
    save_checkpoint(wrapped, tmp_path / "wrapped")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "wrapped" / name).read_bytes() == (
            tmp_path / "plain" / name
        ).read_bytes()


def test_outputs_equal_those_of_the_plain_model(wrapped):
    x, _ = batch(0)
    torch.testing.assert_close(wrapped.eval()(x), injected(base()).eval()(x))


@pytest.mark.parametrize("how", [compiled, checkpoint_wrapper], ids=["compiled", "checkpointed"])
def test_files_of_the_plain_model_load_into_a_wrapped_one(how, tmp_path):
    plain = injected(base())
    for parameter in plain.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    save_packed(plain, tmp_path / "x.vblora")
    save_checkpoint(plain, tmp_path / "checkpoint")
    x, _ = batch(0)
    expected = plain.eval()(x)
    one, two = wrap(base(), how), wrap(base(), how)
    load_packed(one, tmp_path / "x.vblora")
    load_checkpoint(two, tmp_path / "checkpoint")
    for model in (one, two):
        torch.testing.assert_close(model.eval()(x), expected, rtol=1e-5, atol=1e-6)
    save_packed(two, tmp_path / "again.vblora")
    assert load(tmp_path / "again.vblora") == load(tmp_path / "x.vblora")


def test_a_wrapped_model_is_merged_and_ejected(wrapped):
    x, _ = batch(0)
    expected = wrapped.eval()(x)
    merge(wrapped)
    torch.testing.assert_close(wrapped(x), expected, rtol=1e-5, atol=1e-6)


def test_eject_leaves_nothing(wrapped):
    x, _ = batch(0)
    eject(wrapped, "default")
    torch.testing.assert_close(wrapped.eval()(x), base().eval()(x))
