"""A·x, computed from dot products with the bank, equals A·x with a composed A."""

from __future__ import annotations

import pytest
import torch

from tests.torch.models import llama, tokens
from tests.torch.pool.adapters import ALL, adapter, logits
from vbfmt.torch import AdapterPool
from vbfmt.torch.pool import tiles
from vbfmt.torch.pool.frame import Bags
from vbfmt.torch.pool.tiles import Tiles

SAMPLES, RANK, K, TILES, VECTORS, LENGTH = 5, 3, 2, 4, 11, 8


def bags():
    component = torch.arange(RANK).repeat_interleave(K)
    entries = SAMPLES * TILES * RANK * K
    none = torch.zeros(0)
    return Bags(
        a=none,
        b=none,
        inputs=torch.arange(0, entries + 1, RANK * K, dtype=torch.int32),
        outputs=none,
        components=(component.repeat(TILES)[:, None] == component).float(),
    )


def rows(vectors):
    """Return indices and weights, (samples, tiles, rank, k). Some indices are repeated in a
    tile."""
    generator = torch.Generator().manual_seed(0)
    shape = (SAMPLES, TILES, RANK, K)
    indices = torch.randint(0, vectors, shape, generator=generator, dtype=torch.int32)
    indices[:, :, 1] = indices[:, :, 0].flip(2)
    return indices, torch.rand(shape, generator=generator)


def test_products_are_those_of_the_composed_factor():
    indices, weights = rows(VECTORS)
    bank, x = torch.randn(VECTORS, LENGTH), torch.randn(SAMPLES, 1, TILES * LENGTH)
    found = Tiles.of(bank, indices.view(-1), weights.view(-1), bags()).product(x)
    composed = (weights[..., None].double() * bank.double()[indices.long()]).sum(3)
    a = composed.transpose(1, 2).reshape(SAMPLES, RANK, -1)
    expected = (a @ x.double().transpose(1, 2)).view(SAMPLES, RANK).repeat_interleave(K, dim=1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_with_too_few_vectors_the_composed_factor_is_used():
    indices, weights = rows(RANK * K - 1)
    bank = torch.randn(RANK * K - 1, LENGTH)
    assert Tiles.of(bank, indices.view(-1), weights.view(-1), bags()) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_if_pytorch_sorts_entries_the_composed_factor_is_used(dtype, monkeypatch):
    adapters = [adapter(llama, ALL, seed) for seed in range(3)]
    ids, names = tokens(rows=3)[:, :1], ["0", "1", "2"]

    def mixed():
        pool = AdapterPool(llama().to(dtype).eval())
        for place, each in enumerate(adapters):
            pool.put(str(place), each)
        with pool.forward(names):
            return logits(pool.model, ids, use_cache=False), pool

    usual, _ = mixed()
    monkeypatch.setattr(tiles, "_entries_in_any_order", lambda: False)
    composed, pool = mixed()
    parts = pool._staging._last.parts
    assert all(rows.pieces.tiles is None for part in parts if part for rows in part.rows)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(usual, composed, rtol=tolerance, atol=tolerance)
