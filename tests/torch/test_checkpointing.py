"""Activation checkpointing: parts of the model run again during the backward pass."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.torch.models import Net, batch, config, llama, tokens
from tests.torch.test_passes import assert_same, evaluated, gradients, in_another_thread, loss_of
from vbfmt.torch import (
    adapters_of,
    inject,
)


class CheckpointedNet(Net):
    reentrant = False

    def forward(self, x):
        for layer in self.encoder:
            x = checkpoint(lambda t, f=layer: torch.tanh(f(t)), x, use_reentrant=self.reentrant)
        return self.classifier(torch.tanh(self.out(x)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(model, reentrant):
    x, y = batch()
    nn.functional.cross_entropy(model(x), y).backward()
    expected = gradients(model)
    model.__class__ = CheckpointedNet
    model.reentrant = reentrant
    for _ in range(2):  # the second time with what the first left behind
        nn.functional.cross_entropy(model(x.clone().requires_grad_()), y).backward()
        assert_same(gradients(model), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
def test_evaluation_between_a_checkpointed_pass_and_its_backward(model, reentrant):
    model.__class__ = CheckpointedNet
    model.reentrant = reentrant
    x, y = batch()
    x.requires_grad_()
    nn.functional.cross_entropy(model(x), y).backward()
    expected = gradients(model)
    loss = nn.functional.cross_entropy(model(x), y)
    with torch.no_grad():
        model(x)
    loss.backward()
    assert_same(gradients(model), expected, rtol=1e-5, atol=1e-9)


def test_what_threads_that_are_over_have_left_behind_is_let_go(model):
    for _ in range(3):
        in_another_thread(lambda: loss_of(model))
    loss_of(model)
    assert list(adapters_of(model).adapter().composition._recorded) == [threading.get_ident()]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("between", [None, evaluated, loss_of])
def test_a_checkpointed_pass_whose_backward_is_in_another_thread(model, reentrant, between):
    """As on a GPU, whose backward passes run in threads of their own."""
    model.__class__ = CheckpointedNet
    model.reentrant = reentrant
    x, y = batch()
    x.requires_grad_()
    nn.functional.cross_entropy(model(x), y).backward()
    expected = gradients(model)
    loss = in_another_thread(lambda: nn.functional.cross_entropy(model(x), y))
    if between is not None:
        between(model)
    in_another_thread(loss.backward)
    assert_same(gradients(model), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_thread_that_evaluates_with_gradients_beside_a_checkpointed_pass(model, reentrant):
    """Its pass is kept, too, and must not be taken for the one whose parts run again."""
    x, y = batch()
    x.requires_grad_()
    nn.functional.cross_entropy(model(x), y).backward()
    expected = gradients(model)
    with ThreadPoolExecutor(1) as other:
        for _ in range(2):
            model.__class__, model.reentrant = CheckpointedNet, reentrant
            loss = nn.functional.cross_entropy(model(x), y)
            model.__class__ = Net
            other.submit(loss_of, model).result()
            model.__class__ = CheckpointedNet
            loss.backward()
            assert_same(gradients(model), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
def test_two_checkpointed_passes_before_one_backward(model, reentrant):
    (loss_of(model, 1) + loss_of(model, 2)).backward()
    expected = gradients(model)
    model.__class__ = CheckpointedNet
    model.reentrant = reentrant
    parts = []
    for seed in (1, 2):
        x, y = batch(seed)
        parts.append(nn.functional.cross_entropy(model(x.requires_grad_()), y))
    sum(parts).backward()
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
