"""One composition per forward pass, also for unusual and interrupted passes."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from tests.torch.models import batch, config, net
from vbfmt.torch import (
    VBLoRALinear,
    adapters_of,
    disabled,
    inject,
    load_checkpoint,
    save_checkpoint,
    set_adapter,
)
from vbfmt.torch import composition as composition_module


@pytest.fixture
def compositions(monkeypatch):
    """Return a list of the number of rows that each call of `compose` composes."""
    calls = []

    def counting(bank, logits, k, **options):
        rows = compose(bank, logits, k, **options)
        calls.append(len(rows))
        return rows

    compose = composition_module.compose
    monkeypatch.setattr(composition_module, "compose", counting)
    return calls


def loss_of(model, seed=1):
    x, y = batch(seed)
    return nn.functional.cross_entropy(model(x), y)


def gradients(model):
    result = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert result
    return result


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **tolerance)


def test_all_rows_are_composed_together_once(model, compositions):
    rows = sum(layer.updates["default"].logits.shape[0] for layer in adapted(model))
    for _ in range(2):
        loss_of(model).backward()
    assert compositions == [rows, rows]


def adapted(model):
    return [module for module in model.modules() if isinstance(module, VBLoRALinear)]


def test_a_part_of_the_model_called_by_itself_composes_its_factors(model, compositions):
    x, _ = batch()
    loss_of(model)
    with torch.no_grad():
        adapters_of(model).adapter().bank.weight.mul_(3)
    compositions.clear()
    part = model.encoder[0](x)
    assert compositions == [18], "a stale composition must not be used"
    layer = model.encoder[0]
    a, b = layer.updates["default"].factors()
    torch.testing.assert_close(part, layer.base_layer(x) + x @ a.T @ b.T)


def matrices(model):
    """Return the factors of the first layer in a pass."""
    composition = adapters_of(model).adapters["default"].composition
    return composition.matrices_of(composition._slots[0], composition.layers[0].logits)


def test_no_composition_without_an_active_adapter(model, compositions):
    with disabled(model):
        loss_of(model)
    assert compositions == []


def test_a_failed_pass_leaves_nothing_behind(model):
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 3))
    assert matrices(model) is None
    loss_of(model).backward()


@pytest.fixture
def interrupted(model):
    """Return the model after a pass that was ended by Ctrl-C, after which PyTorch calls no hook."""

    def interrupt(*_):
        raise KeyboardInterrupt

    def run():
        handle = model.out.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(batch()[0])
        handle.remove()
        return model

    return run


@pytest.mark.parametrize("what", ["bank", "logits"])
def test_rows_of_an_interrupted_pass_are_not_used_after_changes(interrupted, what):
    model, (x, _) = interrupted(), batch()
    layer = model.encoder[0]
    bank, logits = adapters_of(model).adapter().bank.weight, layer.updates["default"].logits
    with torch.no_grad():
        (bank if what == "bank" else logits).mul_(3)
    found = layer(x)
    model(x)
    assert torch.equal(found, layer(x))


def test_training_after_an_interrupted_evaluation_has_gradients(model, interrupted):
    with torch.no_grad():
        interrupted()
    model.encoder[0](batch()[0]).sum().backward()
    assert model.encoder[0].updates["default"].logits.grad.any()


def test_an_interrupted_pass_is_dropped_when_adapters_change(model, interrupted, tmp_path):
    save_checkpoint(model, tmp_path / "checkpoint")
    for change in (
        lambda: set_adapter(model, "default"),
        lambda: load_checkpoint(model, tmp_path / "checkpoint"),
        lambda: inject(model, config(), adapter_name="second"),
    ):
        interrupted()
        assert matrices(model) is not None
        change()
        assert matrices(model) is None


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_gradcheck_of_a_whole_model_in_float64(k):
    """Input, bank, logits, biases and head, through the composition that all layers share."""
    torch.manual_seed(k)
    model = net()
    inject(model, config(topk=k, bias="all", modules_to_save=["classifier"]))
    model.double()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    x = batch(rows=2)[0].double().requires_grad_()

    def output(x, *values):
        return torch.func.functional_call(model, dict(zip(trained, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x, *trained.values()), fast_mode=True)


def test_accumulated_gradients_are_those_of_the_whole_batch(model):
    x, y = batch(rows=8)
    nn.functional.cross_entropy(model(x), y).backward()
    whole = gradients(model)
    for part in range(4):
        here = slice(2 * part, 2 * part + 2)
        (nn.functional.cross_entropy(model(x[here]), y[here]) / 4).backward()
    assert_same(gradients(model), whole, rtol=1e-4, atol=1e-7)


def test_two_passes_before_one_backward(model):
    (loss_of(model, 1) + loss_of(model, 2)).backward()
    together = gradients(model)
    loss_of(model, 1).backward()
    loss_of(model, 2).backward()
    assert_same(gradients(model), together, rtol=1e-4, atol=1e-7)


def test_evaluation_under_no_grad_between_pass_and_backward(model):
    loss_of(model).backward()
    expected = gradients(model)
    loss = loss_of(model)
    with torch.no_grad():
        evaluated = loss_of(model)
    assert torch.equal(evaluated, loss)
    with torch.inference_mode():
        assert torch.equal(loss_of(model), loss)
    loss.backward()
    assert_same(gradients(model), expected)


def in_another_thread(work):
    """Return the result of `work`, called in a new thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def evaluated(model):
    with torch.no_grad():
        return loss_of(model)


@pytest.mark.parametrize("other", [evaluated, loss_of])
def test_a_pass_of_another_thread_during_a_pass(model, other):
    """Each thread uses the rows that it composed itself, so no gradient is lost."""
    loss_of(model).backward()
    expected = gradients(model)
    first, begun, over = threading.get_ident(), threading.Event(), threading.Event()

    def meanwhile(module, args, output):
        if threading.get_ident() == first:
            second.append(pool.submit(other, model))
            assert begun.wait(10)
        else:
            begun.set()
            assert over.wait(10)

    second = []
    with ThreadPoolExecutor(1) as pool:
        handle = model.encoder[0].register_forward_hook(meanwhile)
        try:
            loss = loss_of(model)
        finally:
            over.set()
            handle.remove()
        assert torch.equal(second[0].result(), loss)
    loss.backward()
    assert_same(gradients(model), expected)


def test_threads_compose_once_each_and_end_their_own_pass(model, compositions):
    def meanwhile(module, args, output):
        handle.remove()
        in_another_thread(lambda: evaluated(model))

    handle = model.encoder[0].register_forward_hook(meanwhile)
    loss_of(model)
    assert compositions == [57, 57]


def test_threads_that_train_and_evaluate_concurrently():
    """With any number of passes in each thread, the gradients are the same."""
    model = net()
    inject(model, config())
    loss_of(model).backward()
    expected = gradients(model)
    over = threading.Event()

    def evaluate():
        found = set()
        while not over.is_set():
            found.add(evaluated(model).item())
        return found

    with ThreadPoolExecutor(1) as pool:
        losses = pool.submit(evaluate)
        try:
            for _ in range(50):
                loss_of(model).backward()
                assert_same(gradients(model), expected)
        finally:
            over.set()
        assert len(losses.result()) == 1


def test_rows_are_released_after_the_pass(model):
    loss_of(model).backward()
    composition = adapters_of(model).adapter().composition
    assert composition._mine.current is None


@pytest.mark.parametrize("where", ["composition", "update", "config"])
def test_k_cannot_be_changed_after_injection(model, where):
    adapter = adapters_of(model).adapter()
    with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
        if where == "composition":
            adapter.composition.topk = 4
        elif where == "update":
            model.out.updates["default"].topk = 4
        else:
            adapter.config = dataclasses.replace(adapter.config, topk=4)
    assert adapter.composition.topk == model.out.updates["default"].topk == adapter.config.topk == 2


def test_autocast_composes_in_float32(model):
    x, y = batch()
    expected = nn.functional.cross_entropy(model(x), y)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()  # some users call it inside the block
    torch.testing.assert_close(loss, expected, rtol=2**-7, atol=2**-7)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    found = gradients(model)
    nn.functional.cross_entropy(model(x), y).backward()
    for name, gradient in gradients(model).items():
        difference = (found[name] - gradient).norm() / gradient.norm()
        assert difference < 2**-4, name


def test_a_model_of_lower_precision_keeps_its_output_dtype(model):
    half = model.bfloat16()
    x, _ = batch()
    assert half(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_model_can_be_copied_after_a_pass(model, copied):
    loss = loss_of(model)
    twin = copied(model)
    assert torch.equal(loss_of(twin), loss)
    loss_of(twin).backward()
    assert adapters_of(twin).root is twin
    with torch.no_grad():
        adapters_of(twin).adapter().bank.weight.zero_()
    assert torch.equal(loss_of(model), loss)


def test_a_model_within_a_model(model):
    outer = nn.Sequential(nn.Identity(), model, nn.Identity())
    x, _ = batch()
    assert torch.equal(outer(x), model(x))


def test_an_nn_sequential_is_supported():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
    x, _ = batch()
    plain = model(x)
    inject(model, config(target_modules=["0", "2"]))
    assert not torch.equal(model(x), plain)
    with disabled(model):
        assert torch.equal(model(x), plain)


def test_layers_without_inject_share_a_bank():
    """`VBLoRALinear` and `VectorBank` can also be used in custom models."""
    from vbfmt.torch import VectorBank

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.bank = VectorBank(16, 8)
            self.one = VBLoRALinear(nn.Linear(16, 32), self.bank, r=2)
            self.two = VBLoRALinear(nn.Linear(32, 8), self.bank, r=2)

        def forward(self, x):
            return self.two(torch.tanh(self.one(x)))

    model = Own()
    x, _ = batch()
    model(x).sum().backward()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["bank.weight", "one.updates.default.logits", "two.updates.default.logits"]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert [key for key in model.state_dict() if "bank" in key] == ["bank.weight"]
