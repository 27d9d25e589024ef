"""AdamW with state only for the logits that were selected."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.torch.models import config, losses, net
from vbfmt.errors import ContentError, ModelError
from vbfmt.torch import LazyAdamW, inject, param_groups

RATES = {"lr": 0.1, "weight_decay": 0.3}


def adapted(**settings):
    torch.manual_seed(5)
    model = net()
    inject(model, config(**settings))
    return model


def test_the_groups_mark_the_logits_only_on_request():
    model = adapted()
    marks = {g["name"]: g.get("sparse") for g in param_groups(model, sparse_logits=True)}
    assert marks == {"bank": None, "logits": True}
    assert all("sparse" not in group for group in param_groups(model))


def test_if_all_logits_are_selected_it_equals_adamw():
    lazy, dense = adapted(topk=16), adapted(topk=16)
    one = LazyAdamW(param_groups(lazy, sparse_logits=True), weight_decay=0.3)
    other = torch.optim.AdamW(param_groups(dense), weight_decay=0.3)
    assert losses(lazy, one, range(20)) == pytest.approx(losses(dense, other, range(20)), rel=1e-5)
    for a, b in zip(lazy.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_an_entry_is_updated_as_often_as_it_has_a_gradient():
    """It changes like a separate parameter that AdamW updates only in these steps."""
    torch.manual_seed(0)
    start = torch.randn(3, 4)
    matrix = nn.Parameter(start.clone())
    apart = [nn.Parameter(value.clone()) for value in start.flatten()]
    lazy = LazyAdamW([{"params": [matrix], "sparse": True}], **RATES)
    each = torch.optim.AdamW(apart, **RATES)
    for _ in range(30):
        gradient = torch.randn(3, 4) * (torch.rand(3, 4) < 0.3)
        matrix.grad = gradient
        for parameter, value in zip(apart, gradient.flatten(), strict=True):
            parameter.grad = value.clone() if value else None
        lazy.step()
        each.step()
        assert matrix.grad is gradient
    torch.testing.assert_close(matrix.detach().flatten(), torch.stack(apart).detach())


def test_logits_that_are_never_selected_do_not_change_and_have_no_state():
    model = adapted()
    groups = param_groups(model, sparse_logits=True)
    (logits,) = (group["params"] for group in groups if group["name"] == "logits")
    before = [parameter.detach().clone() for parameter in logits]
    optimizer = LazyAdamW(groups, weight_decay=0.5)
    seen = [torch.zeros_like(parameter, dtype=torch.bool) for parameter in logits]
    for step in range(5):
        losses(model, optimizer, [step])
        for was, parameter in zip(seen, logits, strict=True):
            was |= parameter.grad != 0
    for was, old, parameter in zip(seen, before, logits, strict=True):
        assert torch.equal(parameter[~was], old[~was])
        assert not torch.equal(parameter[was], old[was])
        assert len(optimizer.state[parameter]["mean"]) == int(was.sum()) < parameter.numel() // 2


def test_resumes_bit_for_bit():
    model = adapted()
    optimizer = LazyAdamW(param_groups(model, sparse_logits=True))
    losses(model, optimizer, range(4))
    other = copy.deepcopy(model)
    resumed = LazyAdamW(param_groups(other, sparse_logits=True))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert losses(model, optimizer, range(4, 8)) == losses(other, resumed, range(4, 8))
    for state in resumed.state.values():
        assert state.get("entries", torch.zeros(1, dtype=torch.int64)).dtype == torch.int64


def test_indices_beyond_what_float32_holds_survive_a_state_dict():
    matrix = nn.Parameter(torch.zeros(1, 2**24 + 2))
    matrix.grad = torch.zeros_like(matrix)
    matrix.grad[0, -1] = 1.0
    optimizer = LazyAdamW([{"params": [matrix], "sparse": True}])
    optimizer.step()
    resumed = LazyAdamW([{"params": [matrix], "sparse": True}])
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.state[matrix]["entries"].tolist() == [2**24 + 1]


def test_a_closure_is_called_once_with_gradients_enabled():
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = LazyAdamW([{"params": [parameter], "sparse": True}], lr=0.1, weight_decay=0.0)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        calls.append(loss.item())
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert calls == [4.0]
    torch.testing.assert_close(parameter.detach(), torch.full((2, 2), 0.9))


def trained_state(model):
    optimizer = LazyAdamW(param_groups(model, sparse_logits=True))
    losses(model, optimizer, range(3))
    return copy.deepcopy(optimizer.state_dict())


DAMAGE = {
    "not ascending": lambda s: s.update(entries=s["entries"].flip(0)),
    "twice": lambda s: s.update(entries=s["entries"].clone().fill_(1)),
    "negative": lambda s: s["entries"].__setitem__(0, -1),
    "past the end": lambda s: s["entries"].__setitem__(-1, 10**9),
    "floats": lambda s: s.update(entries=s["entries"].float()),
    "two dimensions": lambda s: s.update(entries=s["entries"][None]),
    "a list": lambda s: s.update(entries=s["entries"].tolist()),
    "fewer means": lambda s: s.update(mean=s["mean"][1:]),
    "no squares": lambda s: s.pop("square"),
    "negative squares": lambda s: s["square"].__setitem__(0, -1.0),
    "a count of 0": lambda s: s["count"].__setitem__(0, 0.0),
    "a count of NaN": lambda s: s["count"].__setitem__(0, float("nan")),
    "whole numbers": lambda s: s.update(mean=s["mean"].long()),
    "of AdamW": lambda s: s.pop("entries"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_one_error_and_nothing_is_loaded(damage):
    """Indices in a different order would silently train other logits."""
    model = adapted()
    state = trained_state(model)
    DAMAGE[damage](next(s for s in state["state"].values() if "entries" in s))
    optimizer = LazyAdamW(param_groups(model, sparse_logits=True))
    with pytest.raises(ContentError, match=r"the optimizer's state is damaged.*parameter \d+"):
        optimizer.load_state_dict(state)
    assert not optimizer.state


def test_a_state_of_logits_is_refused_for_dense_parameters():
    model = adapted()
    state = trained_state(model)
    dense = LazyAdamW([{"params": g["params"]} for g in param_groups(model)])
    with pytest.raises(ContentError, match="found the state of a sparse parameter"):
        dense.load_state_dict(state)


def test_a_state_with_nan_is_loaded_unchanged():
    """A diverged training run is not damage."""
    model = adapted()
    state = trained_state(model)
    next(s for s in state["state"].values() if "entries" in s)["mean"].fill_(float("nan"))
    LazyAdamW(param_groups(model, sparse_logits=True)).load_state_dict(state)


def test_groups_with_a_different_size_are_refused():
    model = adapted()
    optimizer = LazyAdamW(param_groups(model, sparse_logits=True))
    state = optimizer.state_dict()
    state["param_groups"][1]["params"] = state["param_groups"][1]["params"][:-1]
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(state)


def test_entries_that_are_not_tensors_are_refused():
    model = adapted()
    optimizer = LazyAdamW(param_groups(model, sparse_logits=True))
    losses(model, optimizer, range(1))
    state = optimizer.state_dict()
    index = state["param_groups"][1]["params"][0]
    state["state"][index]["entries"] = [1, 2]
    with pytest.raises(ContentError, match="found list, expected ascending indices"):
        optimizer.load_state_dict(state)


def test_sharded_logits_are_refused(monkeypatch):
    monkeypatch.setattr("vbfmt.torch.lazy_adamw.is_sharded", lambda _: True)
    model = adapted()
    optimizer = LazyAdamW(param_groups(model, sparse_logits=True))
    with pytest.raises(ModelError, match="sparse logits cannot be sharded over processes"):
        losses(model, optimizer, range(1))
