"""Adapters of different sizes for small models, and these models with one adapter merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.torch.models import config, gpt2, llama
from vbfmt import Adapter, Module, Rows
from vbfmt.torch import inject, load_packed, merge, to_adapter

ATTENTION = ["q_proj", "k_proj", "v_proj"]
ALL = [*ATTENTION, "o_proj", "gate_proj", "up_proj", "down_proj"]


def qwen3(seed: int = 0) -> nn.Module:
    pytest.importorskip("transformers", minversion="4.51")
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50,
        "max_position_embeddings": 32,
    }  # fmt: skip
    return Qwen3ForCausalLM(Qwen3Config(**sizes))


def bert(seed: int = 0) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 50, "max_position_embeddings": 32, "num_labels": 3,
        "initializer_range": 0.2,
    }  # fmt: skip
    return BertForSequenceClassification(BertConfig(**sizes))


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str], list[str]]] = {
    "Llama": (llama, ALL, ATTENTION),
    "Qwen3": (qwen3, ALL, ATTENTION),
    "GPT-2": (gpt2, ["c_attn", "c_proj", "c_fc"], ["c_attn"]),
    "BERT": (bert, ["query", "key", "value", "dense"], ["query", "value"]),
}

SIZES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank 2": {"r": 2},
    "rank 5, k 3": {"r": 5, "topk": 3},
    "k 1": {"topk": 1},
    "indices of 16 bits": {"num_vectors": 300, "vector_length": 16},
    "b 4": {"vector_length": 4},
    "another bank": {"num_vectors": 20},
    "ranks by layer": {"rank_pattern": {"0.*": 1}},
}
"""Eight adapters with different shapes, except the first and "another bank"."""


def adapter(make: Callable[[], nn.Module], targets: list[str], seed: int, **sizes: Any) -> Adapter:
    """Return a random adapter that has an effect."""
    model = make()
    torch.manual_seed(seed)
    inject(model, config(target_modules=targets, **sizes))
    return to_adapter(model)


def adapters_for(kind: str) -> dict[str, Adapter]:
    """Return one adapter for each of `SIZES`. Some change all layers, some only the attention."""
    make, whole, some = MODELS[kind]
    return {
        name: adapter(make, some if place % 3 == 1 else whole, place, **_fitting(make, sizes))
        for place, (name, sizes) in enumerate(SIZES.items())
    }


def _fitting(make: Callable[[], nn.Module], sizes: dict[str, Any]) -> dict[str, Any]:
    pattern = {"rank_pattern": {r".*\.0\..*": 1}} if "rank_pattern" in sizes else {}
    return sizes | pattern


def merged(make: Callable[[], nn.Module], adapter: Adapter | None, **to: Any) -> nn.Module:
    """Return the model with this adapter merged, or unchanged for None."""
    model = make().to(**to).eval()
    if adapter is not None:
        load_packed(model, adapter)
        merge(model)
    return model


def logits(model: nn.Module, ids: Tensor, **more: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def random_adapter(modules: list[Module], bank: np.ndarray, seed: int, k: int = 2) -> Adapter:
    """Return an adapter with random rows on a given bank, made quickly without a model."""
    random = np.random.default_rng(seed)
    h, b = bank.shape
    rows = {}
    for module in modules:
        n = module.rows(b)
        first = random.integers(0, h // k, (n, 1))
        indices = first + np.arange(k) * (h // k)
        weights = random.uniform(0.01, 1 / k, (n, k - 1)).astype("<f4")
        weights = -np.sort(-weights, axis=1)
        rows[module] = Rows(indices.astype("u1" if h <= 256 else "<u2"), weights)
    return Adapter.from_rows(bank, rows)
