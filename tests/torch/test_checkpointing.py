"""Activation checkpointing: parts of the model run again during the backward pass."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.torch.models import Net, batch, config, llama, tokens
from tests.torch.test_passes import assert_same, evaluated, gradients, in_another_thread, loss_of
from vbfmt.torch import (
    inject,
)


class CheckpointedNet(Net):
    reentrant = False

    def forward(self, x):
        for layer in self.encoder:
            x = checkpoint(lambda t, f=layer: torch.tanh(f(t)), x, use_reentrant=self.reentrant)
        return self.classifier(torch.tanh(self.out(x)))


def checkpoint_parts(model, reentrant):
    model.__class__ = CheckpointedNet
    model.reentrant = reentrant


def loss_from_leaf(model, seed=1):
    """Return a loss whose input requires a gradient; without it, reentrant checkpointing has no
    gradients."""
    x, y = batch(seed)
    return nn.functional.cross_entropy(model(x.requires_grad_()), y)


def expected_gradients(model):
    loss_from_leaf(model).backward()
    return gradients(model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(model, reentrant):
    expected = expected_gradients(model)
    checkpoint_parts(model, reentrant)
    for _ in range(2):  # the second time with the state left by the first
        loss_from_leaf(model).backward()
        assert_same(gradients(model), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
def test_evaluation_between_a_checkpointed_forward_and_its_backward(model, reentrant):
    expected = expected_gradients(model)
    checkpoint_parts(model, reentrant)
    loss = loss_from_leaf(model)
    with torch.no_grad():
        loss_from_leaf(model)
    loss.backward()
    assert_same(gradients(model), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("between", [None, evaluated, loss_of])
def test_the_backward_of_a_checkpointed_pass_in_another_thread(model, reentrant, between):
    """On a GPU, backward passes run in separate threads."""
    expected = expected_gradients(model)
    checkpoint_parts(model, reentrant)
    loss = in_another_thread(lambda: loss_from_leaf(model))
    if between is not None:
        between(model)
    in_another_thread(loss.backward)
    assert_same(gradients(model), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
def test_evaluation_with_gradients_in_a_thread_during_a_checkpointed_pass(model, reentrant):
    """The pass of the evaluation is also kept, and must not be confused with the checkpointed
    one."""
    expected = expected_gradients(model)
    with ThreadPoolExecutor(1) as other:
        for _ in range(2):
            checkpoint_parts(model, reentrant)
            loss = loss_from_leaf(model)
            model.__class__ = Net
            other.submit(loss_of, model).result()
            model.__class__ = CheckpointedNet
            loss.backward()
            assert_same(gradients(model), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
def test_two_checkpointed_passes_before_one_backward(model, reentrant):
    (loss_of(model, 1) + loss_of(model, 2)).backward()
    expected = gradients(model)
    checkpoint_parts(model, reentrant)
    sum(loss_from_leaf(model, seed) for seed in (1, 2)).backward()
    assert_same(gradients(model), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_transformers(reentrant):
    model, ids = llama().train(), tokens()
    inject(model, config(target_modules="all-linear"))
    plain = model(input_ids=ids, labels=ids).loss
    plain.backward()
    expected = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    loss = model(input_ids=ids, labels=ids).loss
    assert torch.equal(loss, plain)
    loss.backward()
    assert_same(gradients(model), expected, rtol=1e-5, atol=1e-8)


class PartsNet(CheckpointedNet):
    """A model whose encoder is also called by itself, as in T5."""

    def encode(self, x):
        for layer in self.encoder:
            x = checkpoint(lambda t, f=layer: torch.tanh(f(t)), x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("order", ["part first", "whole first", "part alone"])
def test_a_part_called_by_itself_and_a_whole_pass(model, reentrant, order):
    def loss():
        parts = {
            "part": lambda: model.encode(batch(2)[0].requires_grad_()).square().sum(),
            "whole": lambda: loss_from_leaf(model),
        }
        first = order.split()[0]
        names = [first] if order == "part alone" else [first, *({*parts} - {first})]
        return sum(parts[name]() for name in names)

    model.__class__, model.reentrant = PartsNet, reentrant
    loss().backward()
    found = gradients(model)
    model.encode = lambda x: [x := torch.tanh(layer(x)) for layer in model.encoder][-1]
    model.forward = lambda x: model.classifier(torch.tanh(model.out(model.encode(x))))
    loss().backward()
    assert_same(found, gradients(model), rtol=1e-4, atol=1e-7)


def test_t5s_encoder_called_by_itself_and_the_whole_model():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=50, dropout_rate=0.0, decoder_start_token_id=0, **sizes)
    ).train()
    inject(model, config(target_modules=["q", "v", "wi", "wo"]))
    ids = tokens()

    def loss():
        whole = model(input_ids=ids, labels=ids).loss
        return whole + model.encoder(input_ids=ids).last_hidden_state.square().mean()

    loss().backward()
    expected = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    loss().backward()
    assert_same(gradients(model), expected, rtol=1e-4, atol=1e-7)


def test_a_parameter_changed_before_the_backward_of_a_part_is_detected(model):
    loss = model.encoder[0](batch()[0]).sum()
    with torch.no_grad():
        model.vblora.adapters["default"].bank.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_torch_func_of_a_part_called_by_itself(model):
    x = batch()[0]
    found = torch.func.grad(lambda t: model.encoder[0](t).sum())(x)
    leaf = x.clone().requires_grad_()
    model.encoder[0](leaf).sum().backward()
    torch.testing.assert_close(found, leaf.grad)
