"""What differs between two adapters."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spec.corpus.valid import adapter as tiny_adapter
from spec.golden.make import wide_indices, worked_example
from tests.converters.merge.folders import adapter_of
from tests.strategies import adapters, names, tensors, texts
from vbfmt import Module, Tensor
from vbfmt.analysis.difference import compare


@given(adapters())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_an_adapter_does_not_differ_from_itself(adapter):
    assert compare(adapter, adapter).same


@st.composite
def pairs(draw):
    """Draw an adapter, and one that differs from it in at most one field."""
    a = draw(adapters())
    part = draw(st.sampled_from(["config", "metadata", "tensors", "base_model", "bank", "modules"]))
    drawn = {
        "config": st.none() | st.sampled_from(CONFIGS),
        "metadata": st.just(a.metadata) | st.dictionaries(names(), texts(), max_size=1),
        "tensors": st.just(a.tensors) | st.dictionaries(names(), tensors(), max_size=1),
        "base_model": st.none() | st.just(a.base_model) | texts(),
        "bank": st.sampled_from([a.bank, -a.bank, a.bank * np.float32(0.5)]),
        "modules": st.sampled_from([a.modules, turned(a.modules)]),
    }[part]
    return a, dataclasses.replace(a, **{part: draw(drawn)})


CONFIGS = ("{}", '{"a":null}', '{"a":1}', '{"a":true}', '{"a":1.0}', '{"a": 1}', '{"a":[1,{}]}')


def turned(modules):
    return tuple(
        dataclasses.replace(module, fan_in_fan_out=not module.fan_in_fan_out) for module in modules
    )


@given(pairs())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_adapters_differ_exactly_when_they_are_not_equal(pair):
    a, b = pair
    assert compare(a, b).same == compare(b, a).same == (a == b)


@pytest.mark.parametrize("one", [None, *CONFIGS])
@pytest.mark.parametrize("other", [None, *CONFIGS])
def test_configs_that_are_equal_in_python_but_not_in_json_differ(one, other):
    a, b = (dataclasses.replace(worked_example(), config=text) for text in (one, other))
    assert compare(a, b).same == (one == other)


def test_the_effect_of_a_changed_weight_on_the_factors_is_measured():
    a = worked_example()
    weights = a.weights.copy()
    weights[0] = 0.125
    difference = compare(a, dataclasses.replace(a, weights=weights))
    (module,) = difference.modules
    assert (module.name, module.rows_reselected, module.largest_weight) == ("layer", 0, 0.125)
    assert module.largest_factor == 0.25  # |(−1, 0.5) − (1, 2)| · 0.125
    assert difference.largest == 0.25
    assert not difference.parts


def test_rows_with_a_different_selection_are_counted():
    a = worked_example()
    indices = a.indices.copy()
    indices[0] = [2, 1]
    (module,) = compare(a, dataclasses.replace(a, indices=indices)).modules
    assert (module.rows_reselected, module.largest_weight) == (1, 0)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"base_model": "other"}, "base model: 'example/größe' and 'other'"),
        ({"base_revision": None}, "base revision: '0123abc' and None"),
        ({"config": '{"topk":3}'}, "config: differs at peft_type"),
        ({"metadata": {"task": "κλῖμαξ"}}, "metadata: differs at author"),
        ({"tensors": {}}, "tensor empty: only in the first"),
        (
            {"tensors": {"empty": Tensor("F32", (0, 3), np.empty(0, "u1"))}},
            "tensor empty: Tensor(I64, [0, 3]) and Tensor(F32, [0, 3])",
        ),
    ],
)
def test_everything_around_the_factors_is_compared(change, line):
    a = wide_indices()
    assert line in compare(a, dataclasses.replace(a, **change)).lines()


def test_bytes_of_other_tensors_are_counted():
    a = wide_indices()
    changed = Tensor.of(a.tensors["score.weight"].numpy() + np.float32(1))
    b = dataclasses.replace(a, tensors=dict(a.tensors) | {"score.weight": changed})
    (line,) = compare(a, b).lines()
    assert line.startswith("tensor score.weight: ")
    assert line.endswith(" of 24 bytes")


def test_modules_of_only_one_adapter_are_named():
    difference = compare(worked_example(), wide_indices())
    assert difference.only_in_a == ("layer",)
    assert difference.only_in_b == ("h.0.attn.c_attn", "h.0.mlp.c_fc")
    assert "h: 3 and 257" in difference.lines()
    assert "1 modules only in the first: layer" in difference.lines()


def test_a_bank_that_differs_in_the_sign_of_zero_differs():
    a = worked_example()
    zero = dataclasses.replace(a, bank=np.zeros_like(a.bank))
    minus = dataclasses.replace(a, bank=-np.zeros_like(a.bank))
    assert compare(zero, minus).lines() == ["bank: 6 of 6 elements, largest difference 0"]


def test_factors_far_larger_than_their_file_are_compared_in_little_memory():
    """Earlier, a file of 70 kB took 2 GB, because all factors of both adapters were in memory at
    once."""
    vast = tiny_adapter(Module("m", 1 << 20, 1 << 20, 4), h=1, b=1 << 14, k=1)
    other = dataclasses.replace(vast, bank=vast.bank + 1)
    tracemalloc.start()
    try:
        assert compare(vast, other).largest == 1
        assert compare(vast, vast).same
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_adapters_with_different_vector_lengths_are_compared_by_element():
    one = tiny_adapter(Module("m", 12, 24, 2), h=1, b=4, k=1)
    other = tiny_adapter(Module("m", 12, 24, 2), h=1, b=6, k=1)
    expected = max(
        np.abs(x.astype("f8") - y).max()
        for x, y in zip(one.factors("m"), other.factors("m"), strict=True)
    )
    assert compare(one, other).modules[0].largest_factor == expected


def test_adapters_with_different_k_are_compared_by_their_factors():
    """Compare the worked example with a copy whose rows are padded to k = 3 with a weight of
    zero."""
    two = worked_example()
    three = dataclasses.replace(
        two,
        indices=np.array([[2, 0, 1], [0, 1, 2], [1, 0, 2]], "u1"),
        weights=np.array([[0.25, 0], [0.5, 0], [0, 0]], "<f4"),
    )
    difference = compare(two, three)
    assert not difference.same
    (module,) = difference.modules
    assert (module.rows_reselected, module.largest_weight) == (None, None)
    assert module.largest_factor == 0


def test_modules_that_are_the_same_are_not_listed():
    adapter = adapter_of()
    weights = adapter.weights.copy()
    last = adapter.modules[-1]
    weights[adapter.rows(last.name)] *= 0.5
    found = compare(adapter, dataclasses.replace(adapter, weights=weights))
    assert [module.name for module in found.modules] == [last.name]
    assert found.compared == len(adapter.modules) > 1
