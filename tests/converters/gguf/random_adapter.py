"""Random adapters with the modules of a Llama, whose effect on the outputs is visible."""

from __future__ import annotations

import numpy as np

from vbfmt import Adapter, Module
from vbfmt._math.admixture import rows_from_selection
from vbfmt._math.selection import select_top_k


def random_adapter(
    *,
    layers: int,
    hidden: int,
    feed: int,
    kv: int,
    b: int,
    rank: int = 4,
    scale: float = 0.1,
    seed: int = 0,
) -> Adapter:
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, kv),
        "self_attn.v_proj": (hidden, kv),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, feed),
        "mlp.up_proj": (hidden, feed),
        "mlp.down_proj": (feed, hidden),
    }
    modules = [
        Module(f"model.layers.{layer}.{name}", *shape, rank)
        for layer in range(layers)
        for name, shape in shapes.items()
    ]
    return adapter_of(modules, b=b, scale=scale, seed=seed)


def adapter_of(
    modules: list[Module], *, b: int, h: int = 32, scale: float = 0.1, seed: int = 0
) -> Adapter:
    rng = np.random.default_rng(seed)
    bank = rng.uniform(-scale, scale, (h, b)).astype(np.float32)
    rows = {
        module: rows_from_selection(
            select_top_k({"": rng.standard_normal((module.rows(b), h)).astype(np.float32)}, 2), h
        )
        for module in modules
    }
    return Adapter.from_rows(bank, rows, base_model="some/base")
