"""Warnings about training that would silently have no effect."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch._dynamo.utils
from torch import nn

from tests.torch.models import Net, batch, config, net
from vbfmt.errors import ModelError, VbfmtWarning
from vbfmt.torch import (
    adapters_of,
    disabled,
    inject,
    load_packed,
    merge,
    param_groups,
    save_checkpoint,
    save_packed,
    to_adapter,
    unmerge,
)


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Reset dynamo: once anything was compiled, even in another test, calls are not counted."""
    torch._dynamo.utils.counters.clear()


class Reader(Net):
    """A model that reads the weight of `out` instead of calling it, as WavLM's attention and Mamba
    do."""

    def forward(self, x):
        for layer in self.encoder:
            x = torch.tanh(layer(x))
        return self.classifier(torch.tanh(nn.functional.linear(x, self.out.weight)))


def reader():
    torch.manual_seed(0)
    model = Reader()
    inject(model, config())
    return model


def uses(model, folder):
    """Save, pack, merge and unmerge an adapter; each of these may warn."""
    save_checkpoint(model, folder / "checkpoint", overwrite=True)
    save_packed(model, folder / "adapter.vblora", overwrite=True)
    merge(model)
    unmerge(model)


def warned(work):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [str(each.message) for each in caught if each.category is VbfmtWarning]


def test_a_layer_that_the_model_never_calls_is_named(tmp_path):
    model = reader()
    assert warned(lambda: uses(model, tmp_path)) == [], "not known before a whole pass"
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 3))
    assert warned(lambda: uses(model, tmp_path)) == [], "nor after one that failed"
    model(batch()[0])
    found = warned(lambda: uses(model, tmp_path))
    assert len(found) == 3
    assert all(each.startswith("out: these layers were never called") for each in found)
    assert all("exclude_modules" in each for each in found)
    packed = Reader().eval()
    load_packed(packed, to_adapter(model))
    packed(batch()[0])
    with pytest.warns(VbfmtWarning, match="out: these layers were never called"):
        merge(packed)


@pytest.mark.parametrize("copied", [lambda model: model, copy.deepcopy])
def test_layers_that_are_called_only_sometimes_are_not_named(copied, tmp_path):
    model = copied(reader())
    model(batch()[0])
    with disabled(model):
        model.out(torch.zeros(2, 32))  # calls of a part of the model count, too
    assert warned(lambda: uses(model, tmp_path)) == []
    inject(model, config(target_modules=["classifier"], vector_length=2), adapter_name="second")
    assert warned(lambda: uses(model, tmp_path)) == [], "no pass since the adapter was injected"


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_layers_give_no_warning(whole, tmp_path):
    model = net()
    inject(model, config())
    called = torch.compile(model, backend="eager") if whole else model
    if not whole:
        model.out.compile(backend="eager")
    called(batch()[0])
    assert warned(lambda: uses(model, tmp_path)) == []


def test_training_with_a_packed_adapter_gives_one_warning():
    model = net()
    inject(model, config())
    packed = net().eval()
    load_packed(packed, to_adapter(model))
    x, _ = batch()
    assert warned(lambda: packed(x)) == []
    packed.train()
    with torch.no_grad():
        assert warned(lambda: packed(x)) == []
    (found,) = warned(lambda: [packed(x) for _ in range(3)])
    assert "load_checkpoint or warm_start" in found


def test_trainable_parameters_outside_the_adapter_are_named(tmp_path):
    model = net()
    inject(model, config(bias="all", modules_to_save=["out"], target_modules=["encoder.0"]))
    inject(model, config(), adapter_name="second")
    groups = lambda: param_groups(model)  # noqa: E731
    for work in (groups, lambda: uses(model, tmp_path)):
        assert warned(work) == []
    model.classifier.requires_grad_(True)
    for work, times in ((groups, 1), (lambda: uses(model, tmp_path), 2)):
        found = warned(work)
        assert len(found) == times
        assert all(
            each.startswith("classifier.weight, classifier.bias: trainable") for each in found
        )
        assert all("modules_to_save" in each for each in found)
    assert adapters_of(model).active == "second"


class Shared(nn.Module):
    """A model that calls one module under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.again = nn.ModuleList([self.first])
        self.last = nn.Linear(8, 8)

    def forward(self, x):
        return self.last(self.again[0](self.first(x)))


def test_a_module_with_two_names_is_reported_and_not_merged(tmp_path):
    settings = config(target_modules=["first", "last"])
    model = Shared()
    with pytest.warns(VbfmtWarning, match="first: the model has the same module as again.0, too"):
        inject(model, settings)
    save_packed(model, tmp_path / "x.vblora")
    weight = model.first.weight.clone()
    with pytest.raises(ModelError, match="first: found the same module as again.0.*merging would"):
        merge(model)
    assert torch.equal(model.first.weight, weight)
    with pytest.warns(VbfmtWarning, match="has no effect"):
        load_packed(Shared().eval(), tmp_path / "x.vblora")
    apart = Shared()
    apart.again[0] = copy.deepcopy(apart.first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inject(apart, settings)
