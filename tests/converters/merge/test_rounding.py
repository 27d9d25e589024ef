"""Matrices that a merge would round away, because the output's dtype is too narrow for them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.converters.merge.folders import adapter_of, save_base, tensor_of, weights_of
from vbfmt import errors
from vbfmt.converters import merge
from vbfmt.converters.merge import layout, stream
from vbfmt.converters.names.blocks import Block


def small(*names, value=1e-9, dtype="F32"):
    """The weights of a base, of which some matrices have only tiny values."""
    weights = weights_of(dtype=dtype)
    return weights | {name: tensor_of(np.full(weights[name].shape, value), dtype) for name in names}


def test_a_head_that_the_output_dtype_rounds_to_zero(tmp_path):
    head = {"score.weight": tensor_of(np.full((3, 24), 1e-6)), "score.bias": tensor_of(np.ones(3))}
    adapter = adapter_of(tensors=head, config='{"task_type":"SEQ_CLS"}')
    folder = save_base(tmp_path / "base", weights_of())
    with pytest.raises(
        errors.TargetError, match=r"too small for float16: score.weight.*dtype=bfloat16"
    ):
        merge.plan(adapter, folder, dtype="float16")
    merge.plan(adapter, folder, dtype="bfloat16")
    half = save_base(tmp_path / "half", weights_of(dtype="F16"))
    with pytest.raises(errors.TargetError, match=r"too small for float16: score.weight"):
        merge.plan(adapter, half)
    small_bias = {
        "score.bias": tensor_of(np.full(3, 1e-6)),
        "score.weight": tensor_of(np.ones((3, 24))),
    }
    merge.plan(adapter_of(tensors=small_bias, config='{"task_type":"SEQ_CLS"}'), half)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F64"])
def test_a_matrix_of_the_base_that_the_output_would_round_away(tmp_path, dtype):
    """Earlier, it became zeros without an error."""
    folder = save_base(tmp_path / "base", small("model.embed.weight", dtype=dtype))
    with pytest.raises(
        errors.TargetError, match=r"too small for float16: model.embed.weight.*dtype=bfloat16"
    ):
        merge.plan(adapter_of(), folder, dtype="float16")
    for wider in ("bfloat16", "float32"):
        merge.plan(adapter_of(), folder, dtype=wider)
    merge.plan(adapter_of(), save_base(tmp_path / "norm", small("model.norm.weight")))


def test_a_matrix_that_is_zero_or_has_one_value_of_the_dtypes_precision_is_converted(tmp_path):
    large = weights_of() | {"model.embed.weight": tensor_of(np.zeros((700, 400)))}
    merge.plan(adapter_of(), save_base(tmp_path / "zero", large), dtype="float16")
    values = np.full((700, 400), 1e-9)
    values[-1, -1] = 1e-3
    large["model.embed.weight"] = tensor_of(values)
    merge.plan(adapter_of(), save_base(tmp_path / "one", large), dtype="float16")


@pytest.mark.parametrize("value", [0, 1e-9])
def test_an_adapted_matrix_that_the_output_would_round_away(tmp_path, value):
    folder = save_base(tmp_path / "base", small("model.layers.0.q.weight", value=value))
    tiny = adapter_of(scale=1e-5)
    with pytest.raises(errors.TargetError, match=r"too small for float16: model.layers.0.q"):
        list(merge.tensors(merge.plan(tiny, folder, dtype="float16")))
    with pytest.raises(errors.TargetError, match=r"too small for float16: model.layers.0.q"):
        merge.write(merge.plan(tiny, folder, dtype="float16"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = dict(merge.tensors(merge.plan(adapter_of(), folder, dtype="float16")))
    delta = adapter_of().delta("model.layers.0.q")
    np.testing.assert_allclose(found["model.layers.0.q.weight"].numpy(), delta, atol=1e-4)


@pytest.mark.parametrize("adapted", [0, 1])
def test_each_adapted_expert_of_a_stack_is_checked_on_its_own(adapted):
    adapter = adapter_of({"m": (16, 24)}, scale=1e-5)
    stack = np.ones((2, 16, 24))
    parts = (layout.Part(adapter["m"], Block("t", index=adapted)),)
    list(stream._pieces(layout.Item("t", tensor_of(stack), "F16", parts), adapter))
    stack[1] = 1e-9
    with pytest.raises(errors.TargetError, match="all values are too small for float16: t"):
        list(stream._pieces(layout.Item("t", tensor_of(stack), "F16", parts), adapter))
