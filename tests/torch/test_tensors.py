"""Values that a narrower dtype would round to infinities or to zeros are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.torch.models import config, net
from vbfmt.errors import ModelError
from vbfmt.tensors import Tensor
from vbfmt.torch import (
    get_adapter_state_dict,
    inject,
    load_checkpoint,
    load_packed,
    save_checkpoint,
    set_adapter_state_dict,
    to_adapter,
    warm_start,
)
from vbfmt.torch.tensors import cast_like

HALF, BFLOAT, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("values", "dtype", "what"),
    [
        ([[65504.0, 1]], HALF, None),
        ([[65519.0, 1]], HALF, None),  # rounds to the largest value
        ([[65520.0, 1]], HALF, "large"),
        ([[float("inf"), 1]], HALF, None),  # infinities are kept, as in masks
        ([[2.0**-14, 0]], HALF, None),
        ([[2.0**-15, 0]], HALF, "small"),
        ([2.0**-15, 0], HALF, None),  # a bias of this size has no effect
        ([[0.0, 0]], HALF, None),
        ([[1e30, 1]], BFLOAT, None),
        ([[1e-39, 0]], BFLOAT, "small"),
        ([[1e-50, 0]], FLOAT, "small"),
        ([[1e50, 0]], FLOAT, "large"),
        ([[1e-50, 0]], DOUBLE, None),
    ],
)
def test_the_range_of_each_dtype(values, dtype, what):
    wide = torch.tensor(values, dtype=DOUBLE if dtype in (FLOAT, DOUBLE) else FLOAT)
    like = torch.empty(0, dtype=dtype)
    if what:
        with pytest.raises(ModelError, match=f"too {what} for .*: x: found at most"):
            cast_like(wide, like, "x")
    else:
        torch.testing.assert_close(cast_like(wide, like, "x"), wide.to(dtype), equal_nan=True)


@pytest.mark.parametrize("load", [load_packed, warm_start])
def test_a_head_for_a_model_in_half_precision(load):
    model = net()
    inject(model, config())
    head = {"classifier.weight": Tensor.of(np.full((2, 8), 1e6, "<f4"))}
    packed = replace(to_adapter(model), tensors=head)
    other = net().half()
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ModelError, match="too large for float16: classifier.weight"):
        load(other, packed)
    assert all(map(torch.equal, before.values(), other.state_dict().values()))
    load(net().bfloat16(), packed)


@pytest.mark.parametrize(("factor", "what"), [(1e7, "large"), (1e-8, "small")])
def test_a_checkpoint_for_an_adapter_in_half_precision(tmp_path, factor, what):
    model = net()
    inject(model, config())
    with torch.no_grad():
        model.vblora.adapter().bank.weight.mul_(factor)
    save_checkpoint(model, tmp_path / "x")
    state = get_adapter_state_dict(model)
    half = net()
    inject(half, config())
    half.half()
    before = {key: value.clone() for key, value in get_adapter_state_dict(half).items()}
    for load in (
        lambda: load_checkpoint(half, tmp_path / "x"),
        lambda: set_adapter_state_dict(half, state),
    ):
        with pytest.raises(ModelError, match=f"too {what} for float16.*vector_bank"):
            load()
    after = get_adapter_state_dict(half)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_bank_in_double_precision_that_float32_cannot_hold():
    model = net()
    inject(model, config())
    model.double()
    to_adapter(model)
    with torch.no_grad():
        model.vblora.adapter().bank.weight.mul_(1e-50)
    with pytest.raises(ModelError, match="too small for float32: bank"):
        to_adapter(model)
