"""Each sample of a mixed batch has the outputs of the model with its adapter merged."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from tests.torch.models import llama, net, tokens
from tests.torch.pool.adapters import (
    ALL,
    MODELS,
    SIZES,
    adapter,
    adapters_for,
    logits,
    merged,
)
from vbfmt.torch import AdapterPool

NAMES = [*list(SIZES)[:4], None, *list(SIZES)[4:]]
CAUSAL = [kind for kind in MODELS if kind != "BERT"]


@functools.cache
def of(kind):
    """Return the adapters for a model, and the model with each of them merged."""
    found = adapters_for(kind)
    return found, {name: merged(MODELS[kind][0], name and found[name]) for name in NAMES}


def pool_for(kind, **settings):
    """Return a pool of eight adapters, its model, and the adapters."""
    model = MODELS[kind][0]().eval()
    pool = AdapterPool(model, **settings)
    found, _ = of(kind)
    for name, each in found.items():
        pool.put(name, each)
    return pool, model, found


def expected(kind, ids, **more):
    rows = []
    for place, name in enumerate(NAMES):
        one = {key: value[place : place + 1] for key, value in more.items()}
        rows.append(logits(of(kind)[1][name], ids[place : place + 1], **one))
    return torch.cat(rows)


@pytest.mark.parametrize("kind", MODELS)
def test_a_mixed_batch_of_eight_adapters_and_none(kind):
    pool, model, _ = pool_for(kind)
    ids = tokens(rows=len(NAMES))
    base = logits(model, ids)
    with pool.forward(NAMES):
        mixed = logits(model, ids)
    torch.testing.assert_close(mixed, expected(kind, ids), rtol=2e-5, atol=2e-5)
    assert torch.equal(mixed[NAMES.index(None)], base[NAMES.index(None)])
    changed = (mixed - base).abs().amax(dim=tuple(range(1, mixed.dim())))
    assert all(float(far) > 0.01 for far, name in zip(changed, NAMES, strict=True) if name)
    assert torch.equal(logits(model, ids), base), "after the block the base is alone"


@pytest.mark.parametrize("kind", MODELS)
def test_one_position_per_sample(kind):
    """This is the case of decoding, where B is not composed."""
    pool, model, _ = pool_for(kind)
    ids = tokens(rows=len(NAMES))[:, :1]
    with pool.forward(NAMES):
        mixed = logits(model, ids)
    torch.testing.assert_close(mixed, expected(kind, ids), rtol=2e-5, atol=2e-5)


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in CAUSAL[1:]]
BEAMS = {"num_beams": 4, "num_return_sequences": 2}


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *[(kind, {}) for kind in CAUSAL],
        ("Llama", BEAMS),
        *[pytest.param(kind, BEAMS, marks=pytest.mark.slow) for kind in CAUSAL[1:]],
    ],
)
def test_generate_gives_the_same_tokens(kind, how):
    pool, _, _ = pool_for(kind)
    ids = tokens(rows=len(NAMES))[:, :5]
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    settings |= how
    mixed = pool.generate(ids, adapter_names=NAMES, **settings)
    each = how.get("num_return_sequences", 1)
    for place, name in enumerate(NAMES):
        alone = of(kind)[1][name].generate(ids[place : place + 1], **settings)
        assert torch.equal(mixed[place * each : (place + 1) * each], alone), name


@pytest.mark.parametrize("kind", [CAUSAL[0], *SLOW])
def test_samples_of_different_lengths(kind):
    pool, _, _ = pool_for(kind)
    ids = tokens(rows=len(NAMES))[:, :6] + 1
    lengths = [6, 3, 5, 4, 6, 2, 3, 1, 5]
    mask = torch.zeros_like(ids)
    for place, length in enumerate(lengths):
        mask[place, -length:] = 1
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mixed = pool.generate(
        ids * mask % 50, attention_mask=mask, adapter_names=[n or "__base__" for n in NAMES],
        **settings,
    )  # fmt: skip
    for place, (name, length) in enumerate(zip(NAMES, lengths, strict=True)):
        alone = of(kind)[1][name].generate(ids[place : place + 1, -length:] % 50, **settings)
        assert torch.equal(mixed[place, 6:], alone[0, length:]), name


def test_padding_of_a_classifier():
    pool, model, _ = pool_for("BERT")
    ids = tokens(rows=len(NAMES))
    mask = torch.ones_like(ids)
    mask[::2, 6:] = 0
    with pool.forward(NAMES):
        mixed = logits(model, ids, attention_mask=mask)
    wanted = expected("BERT", ids, attention_mask=mask)
    torch.testing.assert_close(mixed, wanted, rtol=2e-5, atol=2e-5)


def test_a_form_for_all_adapters_changes_no_result():
    pool, model, _ = pool_for("Llama", form=(6, 4, 4))
    for ids in (tokens(rows=len(NAMES)), tokens(rows=len(NAMES))[:, :1]):
        with pool.forward(NAMES):
            mixed = logits(model, ids)
        torch.testing.assert_close(mixed, expected("Llama", ids), rtol=2e-5, atol=2e-5)


def test_adapters_that_cannot_share_a_form():
    """Padding the others to a rank of 32 or splitting them to vectors of length 2 is not worth
    it."""
    model = llama().eval()
    pool = AdapterPool(model)
    found = {
        "small": adapter(llama, ALL, 1, r=1),
        "large": adapter(llama, ALL, 2, r=32),
        "short": adapter(llama, ALL, 3, vector_length=2, r=1),
    }
    for name, each in found.items():
        pool.put(name, each)
    names = ["large", "small", None, "short", "small"]
    ids = tokens(rows=5)
    for length in (10, 1):
        with pool.forward(names):
            mixed = logits(model, ids[:, :length])
        for place, name in enumerate(names):
            alone = logits(merged(llama, name and found[name]), ids[place : place + 1, :length])
            torch.testing.assert_close(mixed[place : place + 1], alone, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_of_16_bits(dtype):
    """The error compared with float32 is no larger than that of merged weights."""
    pool, model, found = pool_for("Llama")
    model.to(dtype)
    ids = tokens(rows=len(NAMES))
    with pool.forward(NAMES):
        mixed = logits(model, ids)
    assert mixed.dtype in (dtype, torch.float32)  # transformers 4.45 converts logits to float32
    exact_base = {key: value.float() for key, value in model.state_dict().items()}
    for place, name in enumerate(NAMES):
        exact = llama()
        exact.load_state_dict(exact_base)
        reference = merged(lambda exact=exact: copy.deepcopy(exact), name and found[name])
        rounded = merged(llama, name and found[name], dtype=dtype)
        one = ids[place : place + 1]
        wanted = logits(reference, one)
        far = (mixed[place : place + 1].float() - wanted).abs().max()
        as_merged = (logits(rounded, one).float() - wanted).abs().max()
        assert far <= 1.5 * as_merged + 1e-6, name


def test_under_autocast():
    pool, model, _ = pool_for("Llama")
    ids = tokens(rows=len(NAMES))
    for length in (10, 1):
        with pool.forward(NAMES):
            exact = logits(model, ids[:, :length])
            with torch.autocast("cpu", torch.bfloat16):
                mixed = logits(model, ids[:, :length])
        torch.testing.assert_close(mixed.float(), exact, rtol=0.05, atol=0.05)


class Quantized(nn.Linear):
    """A linear layer that stores its weight in bytes, as bitsandbytes' layers do."""

    __module__ = "bitsandbytes.test"

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.scale = layer.weight.detach().abs().max() / 127
        values = (layer.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(values, requires_grad=False)
        self.bias = layer.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def test_a_quantized_base():
    def quantized(back=False):
        model = llama().eval()
        for layer in model.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, child in list(part.named_children()):
                    if isinstance(child, nn.Linear):
                        made = Quantized(child)
                        if back:
                            child.weight.data = made.weight * made.scale
                        else:
                            setattr(part, name, made)
        return model

    model = quantized()
    pool = AdapterPool(model)
    found = adapters_for("Llama")
    for name, each in found.items():
        pool.put(name, each)
    ids = tokens(rows=len(NAMES))
    with pool.forward(NAMES):
        mixed = logits(model, ids)
    for place, name in enumerate(NAMES):
        reference = merged(lambda: quantized(back=True), name and found[name])
        alone = logits(reference, ids[place : place + 1])
        torch.testing.assert_close(mixed[place : place + 1], alone, rtol=2e-5, atol=2e-5)


def test_a_custom_model_and_gradients_of_its_input():
    pool = AdapterPool(net())
    pool.put("x", adapter(net, ["encoder.0", "encoder.1", "out"], 5))
    x = torch.randn(2, 16, requires_grad=True)
    with torch.inference_mode(), pool.forward(["x", None]):
        pass  # tensors that are prepared in inference mode can be used later
    with pool.forward(["x", None]):
        pool._model(x).sum().backward()
    reference = merged(net, adapter(net, ["encoder.0", "encoder.1", "out"], 5))
    mine = x.grad[0].clone()
    x.grad = None
    reference(x).sum().backward()
    torch.testing.assert_close(mine, x.grad[0], rtol=1e-4, atol=1e-6)
