"""A bank made from a seed: the same bytes everywhere, frozen, for a whole fleet."""

from __future__ import annotations

import hashlib

import pytest
import torch

from vbfmt.errors import ConfigError
from vbfmt.torch import VectorBank

FROM_SEED_7 = "ef9f3d1b6d1cb8a113b11107cfa9f5c9708b5f32938d3851f517aa52f1003452"


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
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ConfigError, match="seed is out of range"):
        VectorBank.from_seed(seed, 4, 4)


def test_making_a_bank_from_a_seed_leaves_the_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    VectorBank.from_seed(0, 8, 4)
    assert torch.equal(torch.rand(4), expected)


def test_sizes_and_bounds_are_checked_first():
    with pytest.raises(ConfigError, match="num_vectors is out of range"):
        VectorBank.from_seed(0, 0, 4)
    with pytest.raises(ConfigError, match="init_bound is out of range"):
        VectorBank.from_seed(0, 4, 4, bound=float("nan"))
