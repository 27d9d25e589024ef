"""The number of tensor operations of a batch. On a GPU, launching one costs more than its work."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.torch.models import llama, tokens
from tests.torch.pool.adapters import ALL, adapter, logits
from vbfmt.torch import AdapterPool
from vbfmt.torch.pool.tiles import Tiles

LAYERS = 2 * len(ALL)


class Operations(TorchDispatchMode):
    """Counts tensor operations, without views."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not any(result.alias_info for result in function._schema.returns):
            self.count[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def adapters():
    return [adapter(llama, ALL, seed) for seed in range(4)]


def pool_of(adapters, count, dtype=torch.float32):
    pool = AdapterPool(llama().to(dtype).eval())
    for place in range(count):
        pool.put(str(place), adapters[place % len(adapters)])
    return pool


def preparing(pool, names):
    with pool.forward(names[::-1]):
        pass  # prepare what is cached by number of samples
    with Operations() as operations, pool.forward(names):
        pass
    assert operations.count.pop("aten::sparse_compressed_tensor") == LAYERS  # only on CPUs
    return operations.count


def test_preparing_a_batch_takes_a_constant_number_of_operations(adapters):
    few = preparing(pool_of(adapters, 4), ["0", "1", "2"])
    residents = pool_of(adapters, 200)
    assert preparing(residents, ["0", "1", "2"]) == few
    assert preparing(residents, [str(place) for place in range(64)]) == few
    assert few.total() <= 40


def test_the_same_batch_is_prepared_once(adapters):
    pool = pool_of(adapters, 4)
    preparing(pool, ["0", "1"])
    with Operations() as operations, pool.forward(["0", "1"]):
        pass
    assert not operations.count


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 5), (torch.bfloat16, 6)])
def test_a_layer_takes_few_operations_in_decoding(adapters, dtype, most, monkeypatch):
    """As on a GPU: convert the input to float32, compose A, apply it, weight, apply B, add."""
    monkeypatch.setattr(Tiles, "of", lambda *_: None)
    pool = pool_of(adapters, 4, dtype)
    ids, names = tokens(rows=4)[:, :1], ["0", "1", "2", "3"]

    def count():
        with Operations() as operations:
            logits(pool.model, ids, use_cache=False)
        return operations.count

    base = count()
    with pool.forward(names):
        mixed = count()
    assert (mixed - base).total() <= most * LAYERS
