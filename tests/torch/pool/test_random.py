"""Adapters of random sizes over random layers, with biases and heads, in one batch in float64."""

from __future__ import annotations

import random
from math import gcd

import numpy as np
import pytest
import torch
from torch import nn

from tests.torch.models import net
from tests.torch.pool.adapters import merged
from vbfmt import Adapter, Module, Tensor
from vbfmt._math.admixture import rows_from_selection
from vbfmt._math.selection import select_top_k
from vbfmt.torch import AdapterPool


def random_adapter(model, seed):
    choice, numbers = random.Random(seed), np.random.default_rng(seed)
    layers = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    names = sorted(choice.sample([*layers], choice.randint(1, len(layers))))
    common = gcd(*(size for name in names for size in layers[name].weight.shape))
    b = choice.choice([each for each in range(1, common + 1) if common % each == 0])
    k = choice.randint(1, 5)
    h = choice.choice([k, 16, 255, 256, 257, 300])
    rows = {}
    for name in names:
        out_features, in_features = layers[name].weight.shape
        module = Module(name, in_features, out_features, choice.randint(1, 5))
        logits = numbers.normal(size=(module.rows(b), h))
        rows[module] = rows_from_selection(select_top_k({name: logits}, k), h)
    others = {
        f"{name}.bias": Tensor.of(numbers.normal(size=len(each.bias)).astype("<f4"))
        for name, each in layers.items()
        if each.bias is not None and choice.random() < 0.3
    }
    others |= {
        f"{name}.weight": Tensor.of(numbers.normal(size=tuple(each.weight.shape)).astype("<f4"))
        for name, each in layers.items()
        if name not in names and choice.random() < 0.3
    }
    bank = numbers.uniform(-0.5, 0.5, (h, b)).astype("<f4")
    return Adapter.from_rows(bank, rows, tensors=others)


@pytest.mark.parametrize("seed", range(12))
def test_each_sample_equals_that_with_its_adapter_merged(seed):
    choice, model = random.Random(seed), net().double().eval()
    pool = AdapterPool(model, form=choice.choice([None, None, (5, 5, 1)]))
    found = {None: None, "__base__": None}
    for number in range(choice.randint(1, 6)):
        found[str(number)] = random_adapter(model, 100 * seed + number)
        pool.put(str(number), found[str(number)])
    alone = {name: merged(net, each, dtype=torch.float64) for name, each in found.items()}
    for positions in (1, 4):
        names = [choice.choice([*found]) for _ in range(choice.randint(1, 8))]
        x = torch.randn(len(names), positions, 16, dtype=torch.float64)
        with torch.no_grad(), pool.forward(names):
            mixed = model(x)
        wanted = torch.cat([alone[name](x[at : at + 1]) for at, name in enumerate(names)])
        torch.testing.assert_close(mixed, wanted.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", [1, 4])
def test_gradients_of_the_input_equal_those_with_the_adapter_merged(positions):
    model = net().double()
    pool, names = AdapterPool(model), ["0", None, "1", "2", "0"]
    found = {str(number): random_adapter(model, number) for number in range(3)}
    for name, each in found.items():
        pool.put(name, each)
    x = torch.randn(5, positions, 16, dtype=torch.float64, requires_grad=True)
    with pool.forward(names):
        result = model(x).square().sum()
    result.backward()
    for at, name in enumerate(names):
        one = x.detach()[at : at + 1].requires_grad_()
        merged(net, name and found[name], dtype=torch.float64)(one).square().sum().backward()
        torch.testing.assert_close(x.grad[at : at + 1], one.grad, rtol=1e-5, atol=1e-5)
