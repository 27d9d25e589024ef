"""Names of modules in a hostile packed file cannot reach attributes of the model that are no
layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.converters.merge.folders import adapter_of
from vbfmt import Tensor
from vbfmt.errors import ModelError
from vbfmt.torch import load_packed, warm_start

NAMES = [
    "_orig_mod.first",
    "first._orig_mod",
    "compiled._orig_mod",
    "compiled._checkpoint_wrapped_module",
    "_modules.first",
    "first..first",
    ".first",
    "first.",
    ".",
    "__class__",
    "forward",
    "training",
    "first.weight",
    "block.00",
    "block.-1",
    "block.0.base_layer",
    "First",
    "a." * 400 + "first",
]


@pytest.fixture
def model():
    parts = {"first": nn.Linear(16, 16), "block": nn.Sequential(nn.Linear(16, 16))}
    return nn.ModuleDict({**parts, "compiled": torch.compile(nn.Linear(16, 16))})


@pytest.mark.parametrize("load", [load_packed, warm_start])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_not_of_a_layer_is_one_error_and_changes_nothing(model, load, name):
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(ModelError):
        load(model, adapter_of({name: (16, 16)}))
    assert [name for name, _ in model.named_modules()] == before


@pytest.mark.parametrize("name", [name for name in NAMES if name != "first.weight"])
def test_a_trained_tensor_with_such_a_name_is_one_error(model, name):
    tensors = {f"{name}.weight": Tensor.of(np.ones((16, 16), "f4"))}
    with pytest.raises(ModelError):
        load_packed(model, adapter_of({"first": (16, 16)}, tensors=tensors))
    assert not hasattr(model["first"], "base_layer")


def test_the_plain_name_of_a_wrapped_layer_is_found(model):
    load_packed(model, adapter_of({"compiled": (16, 16), "block.0": (16, 16)}))
    assert hasattr(model["compiled"]._orig_mod, "base_layer")
    assert hasattr(model["block"][0], "base_layer")
