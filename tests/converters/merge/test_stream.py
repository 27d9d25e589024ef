"""Pieces that are computed on all cores are written as one file, in large blocks."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.converters.merge.folders import adapter_of, save_base, tensor_of, weights_of
from vbfmt import errors
from vbfmt._files import direct
from vbfmt.converters import merge
from vbfmt.converters.merge import stream
from vbfmt.converters.merge.arithmetic import PIECE_BYTES, Piece

SMALL = 3 * direct.ALIGNMENT


def content_of(size, number):
    return np.random.default_rng(number).integers(0, 256, size, np.uint8)


def pieces_of(sizes):
    for number, size in enumerate(sizes):
        data = content_of(size, number)
        yield Piece(size, lambda out, data=data: np.copyto(out, data))


@given(sizes=st.lists(st.one_of(st.integers(0, 40), st.integers(0, SMALL)), max_size=60))
@example(sizes=[SMALL] * 20)
@example(sizes=[SMALL - 1] * 20)
def test_blocks_have_the_pieces_in_order_and_are_valid_until_the_next(sizes):
    found, before = [], None
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(stream, "_BLOCK", SMALL)
        for block in stream.blocks(pieces_of(sizes), pool):
            if before is not None:  # use a block only after the next one is returned
                found.append(bytes(before))
            before = block
    if before is not None:
        found.append(bytes(before))
    contents = [content_of(size, number).tobytes() for number, size in enumerate(sizes)]
    assert b"".join(found) == b"".join(contents)
    assert all(len(block) % direct.ALIGNMENT == 0 for block in found[:-1])
    assert all(found)


def test_blocks_are_aligned_to_pages():
    with ThreadPoolExecutor(2) as pool:
        for block in stream.blocks(pieces_of([1 << 20] * 30), pool):
            assert np.frombuffer(block, np.uint8).ctypes.data % direct.ALIGNMENT == 0


def test_an_error_in_one_piece_is_raised():
    def fails(out):
        raise errors.TargetError("no", part="piece")

    with ThreadPoolExecutor(2) as pool, pytest.raises(errors.TargetError):
        list(stream.blocks([*pieces_of([5] * 4), Piece(3, fails), *pieces_of([5])], pool))


def test_small_tensors_between_large_ones_and_a_slow_disk(tmp_path, monkeypatch):
    """For example, biases between weights: no buffer is overwritten before it is written to the
    disk."""
    real = os.write

    def slow(file, data):
        time.sleep(0.01)
        return real(file, data)

    monkeypatch.setattr(direct.os, "write", slow)
    shapes = {f"layers.{n}.q": (512, 512) for n in range(24)}
    adapter = adapter_of(shapes, b=64)
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = tensor_of(np.zeros(shape))
        tensors |= {f"{name}.{n}": tensor_of(np.full(100 + n, n)) for n in range(20)}
    base = save_base(tmp_path / "base", tensors)
    plan = merge.plan(adapter, base)
    merge.write(plan, tmp_path / "out")
    found = merge.base.read(tmp_path / "out").tensors
    for name in tensors:
        owner = name.removesuffix(".weight")
        if owner in adapter:
            np.testing.assert_allclose(found[name].numpy(), adapter.delta(owner), atol=1e-6)
        else:
            assert found[name] == tensors[name]


def test_the_iterator_gives_the_tensors_of_the_file(tmp_path):
    base = save_base(tmp_path / "base", {"q.weight": tensor_of(np.ones((2000, 512)), "BF16")})
    plan = merge.plan(adapter_of({"q": (2000, 512)}, b=8), base, dtype="float32")
    merge.write(plan, tmp_path / "out")
    assert dict(merge.tensors(plan)) == merge.base.read(tmp_path / "out").tensors


def test_every_thread_has_work(monkeypatch):
    """Earlier, two of eight threads had nothing to do."""
    monkeypatch.setattr(stream, "cores", lambda: 8)
    together = threading.Barrier(8)
    pieces = [Piece(PIECE_BYTES, lambda out: together.wait(10) and None)] * 8
    with stream.workers() as pool:
        assert sum(map(len, stream.blocks(pieces, pool))) == 8 * PIECE_BYTES
    assert not together.broken


def test_the_iterator_gives_what_is_unchanged_as_it_is(tmp_path):
    base = save_base(tmp_path / "base", weights_of())
    plan = merge.plan(adapter_of(), base)
    found = dict(merge.tensors(plan))
    assert found["model.norm.weight"] == plan.base.tensors["model.norm.weight"]
    assert found.keys() == weights_of().keys()
    assert found["model.layers.0.q.weight"] != plan.base.tensors["model.layers.0.q.weight"]
