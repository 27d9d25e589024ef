"""Mixed batches on a base that bitsandbytes has quantized; needs bitsandbytes."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("bitsandbytes")

from tests.torch.models import tokens
from tests.torch.pool.adapters import ALL, ATTENTION, adapter, logits
from tests.torch.test_quantized import large_llama, quantized
from vbfmt.torch import AdapterPool, load_packed

NAMES = ["0", "1", None, "2", "0", "3"]
SIZES = [{}, {"r": 5, "topk": 3}, {"vector_length": 4}, {"num_vectors": 300, "vector_length": 16}]


@pytest.fixture(scope="module")
def adapters():
    return {
        str(place): adapter(large_llama, ATTENTION if place == 1 else ALL, place, **sizes)
        for place, sizes in enumerate(SIZES)
    }


@pytest.mark.parametrize("length", [10, 1], ids=["prefill", "decode"])
@pytest.mark.parametrize(
    ("storage", "training", "tolerance"),
    [
        ("NF4, twice", True, 1e-5),  # the layers themselves compute in float32
        ("FP4", True, 1e-5),
        ("NF4, twice", False, 5e-3),  # rounding in bfloat16
        ("int8", False, 5e-3),
    ],
)
def test_every_sample_is_computed_as_with_only_its_adapter(
    tmp_path, adapters, storage, training, tolerance, length
):
    def base():
        return quantized(tmp_path / "base", "llama", storage).train(training)

    model = base()
    pool = AdapterPool(model)
    for name, each in adapters.items():
        pool.put(name, each)
    ids = tokens(rows=len(NAMES))[:, :length]
    with pool.forward(NAMES):
        mixed = logits(model, ids)
    plain = logits(base(), ids)
    for name in set(NAMES):
        alone = base()
        if name is not None:
            load_packed(alone, adapters[name])
        wanted = logits(alone, ids)
        for place in [at for at, each in enumerate(NAMES) if each == name]:
            torch.testing.assert_close(mixed[place], wanted[place], rtol=tolerance, atol=tolerance)
            if name is not None:
                assert (mixed[place] - plain[place]).abs().max() > 0.05


def test_generate_gives_the_tokens_of_single_adapters(tmp_path, adapters):
    model = quantized(tmp_path / "base", "llama", "NF4, twice").eval()
    pool = AdapterPool(model)
    for name, each in adapters.items():
        pool.put(name, each)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    ids = tokens(rows=len(NAMES))[:, :4]
    mixed = pool.generate(ids, adapter_names=NAMES, **settings)
    for name in set(NAMES):
        alone = quantized(tmp_path / "base", "llama", "NF4, twice").eval()
        if name is not None:
            load_packed(alone, adapters[name])
        wanted = alone.generate(ids, **settings)
        for place in [at for at, each in enumerate(NAMES) if each == name]:
            assert mixed[place].tolist() == wanted[place].tolist()
