"""A bank from a seed: the same bytes on every machine, frozen, and shared by many adapters."""

from __future__ import annotations

import hashlib

import pytest
import torch

from vbfmt.errors import ConfigError
from vbfmt.torch import VBLoRALinear, VectorBank

FROM_SEED_7 = "a639cedb40a254789ec0065c1cea1176bd5c04909adfc2b423dc59d99c402410"


def test_a_bank_from_a_seed_is_the_same_everywhere():
    bank = VectorBank.from_seed(7, 64, 16)
    raw = bank.weight.detach().numpy().astype("<f4").tobytes()
    assert hashlib.sha256(raw).hexdigest() == FROM_SEED_7
    assert bank.frozen
    assert not bank.weight.requires_grad
    assert torch.equal(VectorBank.from_seed(7, 64, 16).weight, bank.weight)
    assert not torch.equal(VectorBank.from_seed(8, 64, 16).weight, bank.weight)


def test_a_bank_from_a_seed_is_uniform_within_its_bound():
    weight = VectorBank.from_seed(0, 256, 64, bound=0.3).weight.detach()
    assert weight.dtype == torch.float32
    assert weight.abs().max() <= 0.3
    assert weight.mean().abs() < 0.01
    assert weight.std().item() == pytest.approx(0.3 / 3**0.5, rel=0.02)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "7", None])
def test_a_seed_is_an_integer(seed):
    with pytest.raises(ConfigError, match="seed: found"):
        VectorBank.from_seed(seed, 4, 4)


def test_making_a_bank_from_a_seed_does_not_change_the_random_state():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    VectorBank.from_seed(0, 8, 4)
    assert torch.equal(torch.rand(4), expected)


def test_sizes_and_bounds_are_checked_first():
    with pytest.raises(ConfigError, match="num_vectors: found"):
        VectorBank.from_seed(0, 0, 4)
    with pytest.raises(ConfigError, match="init_bound: found"):
        VectorBank.from_seed(0, 4, 4, bound=float("nan"))


def test_the_first_vector_is_zero_and_b_mostly_selects_it_at_first():
    bank = VectorBank.from_seed(0, 64, 8)
    assert (bank.weight[0] == 0).all()
    torch.manual_seed(0)
    layer = VBLoRALinear(torch.nn.Linear(16, 24), bank, r=4, topk=4)
    update = layer.updates["default"]
    rows_of_a = update.rows[0]
    selected = update.logits.topk(4, dim=1)
    weights = selected.values.softmax(1)
    assert (selected.indices[rows_of_a:, 0] == 0).all()
    assert weights[rows_of_a:, 0].min() > 0.5
    assert weights[:rows_of_a, 0].max() < 0.5


def test_the_initial_update_is_smaller():
    bank = VectorBank.from_seed(0, 64, 8)
    sizes = []
    for starts_small in (True, False):
        bank.starts_small = starts_small
        torch.manual_seed(0)
        layer = VBLoRALinear(torch.nn.Linear(16, 24), bank, r=4, topk=4)
        a, b = layer.updates["default"].factors()
        sizes.append((b @ a).norm().item())
    assert sizes[0] < 0.6 * sizes[1]
