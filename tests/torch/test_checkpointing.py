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
    """Of an input that requires a gradient: without one, reentrant parts have none."""
    x, y = batch(seed)
    return nn.functional.cross_entropy(model(x.requires_grad_()), y)


def expected_gradients(model):
    loss_from_leaf(model).backward()
    return gradients(model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(model, reentrant):
    expected = expected_gradients(model)
    checkpoint_parts(model, reentrant)
    for _ in range(2):  # the second time with what the first left behind
        loss_from_leaf(model).backward()
        assert_same(gradients(model), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
def test_evaluation_between_a_checkpointed_pass_and_its_backward(model, reentrant):
    expected = expected_gradients(model)
    checkpoint_parts(model, reentrant)
    loss = loss_from_leaf(model)
    with torch.no_grad():
        loss_from_leaf(model)
    loss.backward()
    assert_same(gradients(model), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("between", [None, evaluated, loss_of])
def test_a_checkpointed_pass_whose_backward_is_in_another_thread(model, reentrant, between):
    """As on a GPU, whose backward passes run in threads of their own."""
    expected = expected_gradients(model)
    checkpoint_parts(model, reentrant)
    loss = in_another_thread(lambda: loss_from_leaf(model))
    if between is not None:
        between(model)
    in_another_thread(loss.backward)
    assert_same(gradients(model), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_thread_that_evaluates_with_gradients_beside_a_checkpointed_pass(model, reentrant):
    """Its pass is kept, too, and must not be taken for the one whose parts run again."""
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
