"""Requests for the base model in one batch with requests for adapters, on CPUs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from vbfmt.converters.vllm import no_adapter  # noqa: E402


def shrunk(function, indices):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(len(indices), 5, generator=generator)
    factors = torch.randn(2, 3, 5, generator=generator)
    output = torch.full((len(indices), 3), 7.0)
    function(inputs, factors, output, torch.tensor(indices), 2.0)
    expected = [
        2 * factors[i] @ x if i >= 0 else torch.zeros(3)
        for i, x in zip(indices, inputs, strict=True)
    ]
    return output, torch.stack(expected)


def test_tokens_without_an_adapter_are_not_changed_by_the_last_one(vllm):
    ops = vllm.modules["lora.ops.torch_ops.lora_ops"]
    wrapper = vllm.modules["lora.punica_wrapper.punica_cpu"]
    found, expected = shrunk(ops.bgmv_shrink, [0, -1, 1])
    assert not torch.allclose(found, expected)
    no_adapter.install()
    for module in (ops, wrapper):
        torch.testing.assert_close(*shrunk(module.bgmv_shrink, [0, -1, 1]))


def test_a_correct_function_is_not_replaced(vllm):
    no_adapter.install()
    ops = vllm.modules["lora.ops.torch_ops.lora_ops"]
    corrected = ops.bgmv_shrink
    no_adapter.install()
    assert ops.bgmv_shrink is corrected
