"""Biases and heads that differ between the samples of a batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.torch.models import config, gpt2, net, tokens
from tests.torch.pool.adapters import adapter, bert, logits, merged
from vbfmt.errors import ModelError
from vbfmt.tensors import Tensor
from vbfmt.torch import AdapterPool, inject, to_adapter

QUERIES = ["query", "value"]


def trained(make, targets, seed, **settings):
    """Return an adapter whose biases and heads differ from the base's."""
    model = make()
    torch.manual_seed(seed)
    inject(model, config(target_modules=targets, **settings))
    with torch.no_grad():
        for parameters in model.vblora.parameters_of("default").values():
            for parameter in parameters:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return to_adapter(model)


def test_heads_and_biases_of_a_classifier():
    found = {
        "head": trained(bert, QUERIES, 1, modules_to_save=["classifier"]),
        "another": trained(bert, QUERIES, 2, modules_to_save=["classifier"], r=2),
        "biases": trained(bert, QUERIES, 3, bias="vblora_only"),
        "all biases": trained(bert, QUERIES, 4, bias="all"),
        "plain": adapter(bert, QUERIES, 5),
    }
    model = bert().eval()
    pool = AdapterPool(model)
    for name, each in found.items():
        pool.put(name, each)
    names = ["head", None, "biases", "another", "all biases", "plain", "head"]
    ids = tokens(rows=len(names))
    base = logits(model, ids)
    with pool.forward(names):
        mixed = logits(model, ids)
    for place, name in enumerate(names):
        alone = logits(merged(bert, name and found[name]), ids[place : place + 1])
        torch.testing.assert_close(mixed[place : place + 1], alone, rtol=2e-5, atol=2e-5)
    assert torch.equal(mixed[1], base[1])
    assert torch.equal(logits(model, ids), base)


def test_adapters_that_have_only_heads_in_common():
    found = trained(net, ["encoder.0"], 1, modules_to_save=["classifier"])
    model = net()
    pool = AdapterPool(model)
    pool.put("x", found)
    x = torch.randn(3, 4, 16)
    with torch.no_grad(), pool.forward(["x", None, "x"]):
        mixed = model(x)
    with torch.no_grad():
        torch.testing.assert_close(mixed[::2], merged(net, found)(x[::2]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mixed[1], net()(x[1]))


def test_a_conv1d_with_trained_bias_and_weight():
    found = trained(gpt2, ["c_attn"], 1, modules_to_save=["mlp.c_fc"], bias="all")
    model = gpt2().eval()
    pool = AdapterPool(model)
    pool.put("x", found)
    ids = tokens(rows=2)
    with pool.forward([None, "x"]):
        mixed = logits(model, ids)
    alone = logits(merged(gpt2, found), ids[1:])
    torch.testing.assert_close(mixed[1:], alone, rtol=2e-5, atol=2e-5)


def test_a_head_for_a_base_in_bfloat16():
    found = trained(bert, QUERIES, 1, modules_to_save=["classifier"], bias="all")
    model = bert().to(torch.bfloat16).eval()
    pool = AdapterPool(model)
    pool.put("x", found)
    ids = tokens(rows=2)
    with pool.forward(["x", None]):
        mixed = logits(model, ids)
    alone = logits(merged(bert, found, dtype=torch.bfloat16), ids[:1])
    torch.testing.assert_close(mixed[:1], alone, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("saved", "part", "kind"),
    [
        (["LayerNorm"], r"LayerNorm\.weight", "LayerNorm"),
        (["word_embeddings"], r"word_embeddings\.weight", "Embedding"),
    ],
)
def test_tensors_that_cannot_differ_in_a_batch_are_refused_by_name(saved, part, kind):
    found = trained(bert, QUERIES, 1, modules_to_save=saved)
    pool = AdapterPool(bert())
    with pytest.raises(ModelError, match=f"{part}: found {kind}.*load_packed"):
        pool.put("x", found)
    assert pool.names == []
    assert pool.used_bytes == 0


def test_a_buffer_is_refused_by_name():
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
    inject(model, config(target_modules=["0"], modules_to_save=["1"]))
    found = to_adapter(model)
    pool = AdapterPool(nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16)))
    with pytest.raises(ModelError, match=r"1\.(bias|num_batches_tracked|running_mean)"):
        pool.put("x", found)


def test_a_tensor_that_the_model_does_not_have():
    found = trained(net, ["encoder.0"], 1)
    pool = AdapterPool(net())
    for name, shape in (("nowhere.bias", (2,)), ("out.bias", (8,)), ("classifier.bias", (3,))):
        tensor = Tensor.of(np.zeros(shape, dtype="<f4"))
        with pytest.raises(ModelError, match=f"in another shape: {name}"):
            pool.put("x", replace(found, tensors={name: tensor}))


@pytest.mark.parametrize(("value", "what"), [(1e6, "large"), (1e-8, "small")])
def test_a_head_that_the_bases_dtype_cannot_hold_is_refused(value, what):
    head = Tensor.of(np.full((3, 32), value, "<f4"))
    found = replace(adapter(bert, ["query"], 1), tensors={"classifier.weight": head})
    with pytest.raises(ModelError, match=f"too {what} for float16: classifier.weight.*bfloat16"):
        AdapterPool(bert().half()).put("x", found)
    model = bert()
    pool = AdapterPool(model)
    pool.put("x", found)
    model.half()
    with pytest.raises(ModelError, match=f"too {what} for float16"), pool.forward(["x"]):
        pass
    AdapterPool(bert().bfloat16()).put("x", found)


def test_a_layer_without_bias_with_a_trained_weight():
    found = trained(net, ["encoder.0"], 1, modules_to_save=["out"])
    assert list(found.tensors) == ["out.weight"]
    pool = AdapterPool(net())
    pool.put("x", found)
    x = torch.randn(3, 4, 16)
    with torch.no_grad(), pool.forward(["x", None, "x"]):
        mixed = pool.model(x)
    with torch.no_grad():
        torch.testing.assert_close(mixed[::2], merged(net, found)(x[::2]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mixed[1], net()(x[1]))


def test_a_base_that_changes_between_batches():
    head = Tensor.of(np.ones((2, 8), "<f4"))
    bias = Tensor.of(np.full(32, 2, "<f4"))
    found = replace(
        adapter(net, ["encoder.0"], 1), tensors={"classifier.weight": head, "encoder.1.bias": bias}
    )
    model, x = net(), torch.randn(2, 16)
    pool = AdapterPool(model)
    pool.put("x", found)

    def assert_same_as_merged():
        def make():
            other = net().to(model.out.weight.dtype)
            other.load_state_dict(model.state_dict())
            return other

        values = x.to(model.out.weight.dtype)
        with torch.no_grad(), pool.forward(["x", None]):
            mixed = model(values)[:1]
        wanted = merged(make, found)(values[:1]).detach()
        torch.testing.assert_close(mixed, wanted, rtol=1e-5, atol=1e-5)

    assert_same_as_merged()
    with torch.no_grad():
        model.encoder[1].bias.fill_(5.0)
        model.classifier.bias.fill_(3.0)
    assert_same_as_merged()
    model.double()
    assert_same_as_merged()
