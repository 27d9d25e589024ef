"""The weighted sum of several adapters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.converters.merge.folders import SHAPES, adapter_of, tensor_of
from vbfmt import errors
from vbfmt.converters import lora
from vbfmt.converters.lowrank import combine


def delta(pair):
    a, b = (factor.astype(np.float64) for factor in pair)
    return b @ a


WEIGHTS = st.floats(-4, 4, width=32).filter(lambda weight: weight == 0 or abs(weight) > 1e-30)


@given(
    weights=st.lists(WEIGHTS, min_size=1, max_size=3),
    ranks=st.lists(st.integers(1, 4), min_size=3, max_size=3),
)
def test_the_sum_is_the_sum(weights, ranks):
    adapters = [adapter_of(seed=n, rank=ranks[n]) for n in range(len(weights))]
    total = combine.weighted(adapters, weights)
    for module, a, b in total.iter_factors():
        assert len(a) == module.rank == sum(ranks[: len(weights)])
        parts = zip(weights, adapters, strict=True)
        wanted = sum(weight * delta(part.factors(module.name)) for weight, part in parts)
        np.testing.assert_allclose(delta((a, b)), wanted, rtol=1e-6, atol=1e-7)
        assert all(map(np.array_equal, total.factors(module.name), (a, b)))


def test_without_weights_concatenation_is_exact():
    one, two = adapter_of(seed=1), adapter_of(seed=2, rank=3)
    for module, a, b in combine.weighted([one, two]).iter_factors():
        (a1, b1), (a2, b2) = one.factors(module.name), two.factors(module.name)
        np.testing.assert_array_equal(a, np.concatenate([a1, a2]))
        np.testing.assert_array_equal(b, np.concatenate([b1, b2], axis=1))


def test_the_sum_of_one_adapter_is_that_adapter():
    adapter = adapter_of()
    total = combine.weighted([adapter])
    assert total.modules == adapter.modules
    for (_, a, b), (_, a1, b1) in zip(total.iter_factors(), adapter.iter_factors(), strict=True):
        np.testing.assert_array_equal(a, a1)
        np.testing.assert_array_equal(b, b1)


def test_a_module_of_only_one_adapter_keeps_its_rank():
    names = list(SHAPES)
    total = combine.weighted([adapter_of(), adapter_of({names[0]: SHAPES[names[0]]}, seed=1)])
    assert {module.name: module.rank for module in total.modules} == {
        name: 4 if name == names[0] else 2 for name in names
    }


def test_disagreements_of_adapters_are_reported():
    one, two = (adapter_of(seed=n, base_model=f"m{n}") for n in (1, 2))
    total = combine.weighted([one, two])
    assert total.base_model is None
    assert combine.disagreement(total) == "the adapters name different base models: m1, m2"
    assert combine.disagreement(combine.weighted([one])) is None


def test_extras_with_one_name_are_refused_unless_dropped_or_equal():
    def with_head(seed, value):
        return adapter_of(seed=seed, tensors={"score.bias": tensor_of([value])})

    with pytest.raises(errors.SourceError, match=r"score\.bias"):
        combine.weighted([with_head(1, 1.0), with_head(2, 2.0)])
    dropped = combine.weighted([with_head(1, 1.0), with_head(2, 2.0)], drop_extras=True)
    assert (dict(dropped.tensors), dropped.extras) == ({}, ("score.bias",))
    assert list(combine.weighted([with_head(1, 1.0), with_head(2, 1.0)]).tensors) == ["score.bias"]


def test_peft_computes_the_same_sum(tmp_path):
    """With the sum as a LoRA, PEFT computes W·x + Σ wᵢ Bᵢ·Aᵢ·x."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    shape = {"layer": (16, 24)}
    adapters = [adapter_of(shape, seed=n) for n in (1, 2)]
    lora.write(combine.weighted(adapters, [0.5, -2.0]), tmp_path / "out")
    model = torch.nn.ModuleDict({"layer": torch.nn.Linear(24, 16)})
    before = model["layer"].weight.detach().clone()
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "out")
    found = adapted.merge_and_unload()["layer"].weight.detach() - before
    wanted = 0.5 * adapters[0].delta("layer") - 2.0 * adapters[1].delta("layer")
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)


def test_tensors_that_a_weight_does_not_scale_are_reported():
    head = {"score.weight": tensor_of(np.ones((2, 24)))}
    parts = [adapter_of(seed=1), adapter_of(seed=2, tensors=head)]
    notice = combine.unweighted(combine.weighted(parts, [1, 0.5]))
    assert notice is not None
    assert notice.endswith("not scaled by `weights`: score.weight")
    assert combine.unweighted(combine.weighted(parts, [0.5, 1])) is None
    assert combine.unweighted(combine.weighted(parts, [1, 0.5], drop_extras=True)) is None


def test_an_unnamed_base_is_not_a_model_named_none():
    parts = [adapter_of(seed=n, base_model=name) for n, name in enumerate(["a/b", None])]
    assert combine.disagreement(combine.weighted(parts)) == (
        "one adapter names no base model, another names a/b"
    )


def test_a_repeated_adapter_is_refused_by_expand_and_merge():
    with pytest.raises(
        errors.TargetError, match="given twice: found the same content in adapters 1 and 2"
    ):
        combine.weighted([adapter_of(), adapter_of()], [1, 2])
