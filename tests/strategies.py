"""Hypothesis strategies of adapters and their parts."""

from __future__ import annotations

import string
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from vbfmt import Adapter, Module, Tensor
from vbfmt._math.admixture import rows_from_selection
from vbfmt._math.selection import select_top_k
from vbfmt.tensors import BITS, byte_length

FLOATS = (np.float32, np.float16, np.float64, ml_dtypes.bfloat16)


def names(max_size: int = 20) -> st.SearchStrategy[str]:
    """Draw names of modules, tensors and metadata: any Unicode except control characters."""
    plain = st.text(string.ascii_lowercase + string.digits + "._", min_size=1, max_size=max_size)
    wild = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=max_size)
    return plain | wild


def texts() -> st.SearchStrategy[str]:
    """Draw any text that is valid Unicode."""
    return st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


@st.composite
def logits(
    draw: st.DrawFn, *, n: st.SearchStrategy[int], h: st.SearchStrategy[int], dtype: Any = None
) -> NDArray[Any]:
    """Draw logits (n, h) of any float dtype and scale, sometimes with ties, equal rows and −∞."""
    shape = draw(n), draw(h)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = dtype or draw(st.sampled_from(FLOATS))
    scale = 10.0 ** draw(st.integers(-6, 4 if dtype == np.float16 else 6))
    values = rng.standard_normal(shape) * scale
    kind = draw(st.sampled_from(["plain", "ties", "close", "few finite", "equal"]))
    if kind == "ties":
        values = np.round(values / scale) * scale
    elif kind == "close":
        values = 1.0 + rng.integers(0, 3, shape) * 2.0**-23
    elif kind == "few finite":
        values = np.where(rng.random(shape) < 0.7, -np.inf, values)
        values[:, 0] = 0.0
    elif kind == "equal":
        values = np.full(shape, scale)
    return values.astype(dtype)


@st.composite
def banks(draw: st.DrawFn, h: int, b: int) -> NDArray[np.float32]:
    """Draw finite banks (h, b) of any scale, with −0 and subnormal numbers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1e-42, 1e-20, 0.02, 1.0, 1e20]))
    bank = (rng.standard_normal((h, b)) * scale).astype("<f4")
    bank[0, 0] = draw(st.sampled_from([-0.0, 0.0, scale]))
    return bank


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Draw other tensors of every dtype with any bytes."""
    dtype = draw(st.sampled_from(sorted(BITS)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    if byte_length(dtype, shape) is None:
        shape = (*shape, 4)
    if shape == (0,):
        shape = (0, 1)  # shape (0,) is refused, as it is left by ZeRO-3
    length = byte_length(dtype, shape)
    assert length is not None
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Tensor(dtype, shape, rng.integers(0, 256, length).astype(np.uint8))


@st.composite
def adapters(draw: st.DrawFn, *, largest_bank: int = 300, plain: bool = False) -> Adapter:
    """Draw adapters. `plain` ones have one rank, no other tensors and no unusual texts, so that
    every format can hold them."""
    h = draw(st.integers(1, 20) | st.sampled_from([255, 256, 257]))
    h = min(h, largest_bank)
    k = draw(st.integers(1, min(h, 5)) | st.just(min(h, 12)))
    b = draw(st.integers(1, 8))
    rank = draw(st.integers(1, 3))
    module_names = draw(st.lists(names(), min_size=1, max_size=4, unique=True))
    if plain:
        module_names = [f"m{position}.lin" for position in range(len(module_names))]
    fan = draw(st.booleans())
    modules = [
        Module(
            name,
            draw(st.integers(1, 4)) * b,
            draw(st.integers(1, 4)) * b,
            rank if plain else draw(st.integers(1, 3)),
            fan if plain else draw(st.booleans()),
        )
        for name in module_names
    ]
    rows = {
        module: rows_from_selection(
            select_top_k({"": draw(logits(n=st.just(module.rows(b)), h=st.just(h)))}, k), h
        )
        for module in modules
    }
    extras: dict[str, Any] = {}
    if not plain:
        extras = {
            "tensors": draw(st.dictionaries(names(), tensors(), max_size=3)),
            "base_revision": draw(st.none() | texts()),
            "metadata": draw(st.dictionaries(names(), texts(), max_size=3)),
            "config": draw(st.none() | st.just('{"peft_type":"VBLORA","r":4}')),
        }
    base_model = draw(st.none() | names())
    return Adapter.from_rows(draw(banks(h, b)), rows, base_model=base_model, **extras)
