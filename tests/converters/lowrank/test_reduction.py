"""Reducing the rank of a sum, compared with the SVD of ΔW."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.converters.lowrank.test_combine import delta
from tests.converters.merge.folders import SHAPES, adapter_of
from vbfmt import errors
from vbfmt.converters import lora
from vbfmt.converters._files import safetensors
from vbfmt.converters.lowrank import combine, reduction


def optimal_error(whole, rank):
    values = np.linalg.svd(whole, compute_uv=False)
    return np.linalg.norm(values[rank:]) / np.linalg.norm(values)


@given(
    out_features=st.integers(1, 60),
    in_features=st.integers(1, 60),
    whole=st.integers(1, 12),
    rank=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_reduction_is_optimal(out_features, in_features, whole, rank, seed):
    random = np.random.default_rng(seed)
    a = random.standard_normal((whole, in_features)).astype(np.float32)
    b = random.standard_normal((out_features, whole)).astype(np.float32)
    new_a, new_b, lost = reduction.reduced(a, b, rank)
    assert (len(new_a), new_b.shape[1]) == (min(rank, whole), min(rank, whole))
    exact = delta((a, b))
    found = np.linalg.norm(exact - delta((new_a, new_b))) / np.linalg.norm(exact)
    best = optimal_error(exact, rank)
    assert abs(found - best) < 1e-6
    assert abs(lost - best) < 1e-6


def test_the_sum_of_two_adapters_of_rank_four_is_reduced_to_four():
    shapes = {"q": (256, 384)}
    total = combine.weighted([adapter_of(shapes, seed=n, rank=4, b=64) for n in (1, 2)], [0.7, 0.3])
    lost = {}
    reduced = reduction.Reduced(total, 4, lost.__setitem__)
    ((module, a, b),) = reduced.iter_factors()
    assert (module.rank, a.shape, b.shape) == (4, (4, 384), (256, 4))
    whole = delta(total.factors("q"))
    best = optimal_error(whole, 4)
    assert 0.01 < best < 1
    error = np.linalg.norm(whole - delta((a, b))) / np.linalg.norm(whole)
    assert abs(error - best) < 1e-5 * best
    assert lost == {"q": pytest.approx(best, rel=1e-5)}


def test_a_zero_change_stays_zero():
    a, b, lost = reduction.reduced(np.zeros((4, 8), "f4"), np.zeros((8, 4), "f4"), 2)
    assert (a.any(), b.any(), lost) == (False, False, 0.0)


def test_a_rank_that_is_low_enough_is_unchanged():
    adapter = adapter_of()
    for module, a, b in reduction.Reduced(combine.weighted([adapter]), 7).iter_factors():
        exact_a, exact_b = adapter.factors(module.name)
        np.testing.assert_array_equal(a, exact_a)
        np.testing.assert_array_equal(b, exact_b)


def test_a_reduced_sum_is_written_as_lora(tmp_path):
    total = combine.weighted([adapter_of(seed=n) for n in (1, 2)], [0.5, 0.5])
    lora.write(reduction.Reduced(total, 3), tmp_path / "out")
    tensors = safetensors.read(tmp_path / "out" / "adapter_model.safetensors").tensors
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 3)
    assert len(tensors) == 2 * len(SHAPES)
    assert {min(tensor.shape) for tensor in tensors.values()} == {3}


def test_reduced_factors_beyond_float32_are_refused():
    """Earlier, they became infinite without an error."""
    a, b = np.full((2, 4000), 3e38, "f4"), np.full((4000, 2), 3e38, "f4")
    with pytest.raises(errors.TargetError, match="too large for float32"):
        reduction.reduced(a, b, 1)
