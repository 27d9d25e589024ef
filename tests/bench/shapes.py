"""Random adapters with the shapes that the benchmarks measure, from a fixed seed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vbfmt import Adapter, Module, Rows
from vbfmt.converters._files import safetensors

LAYERS = 22
TINYLLAMA = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (2048, 256),
    "self_attn.v_proj": (2048, 256),
    "self_attn.o_proj": (2048, 2048),
    "mlp.gate_proj": (2048, 5632),
    "mlp.up_proj": (2048, 5632),
    "mlp.down_proj": (5632, 2048),
}
LLAMA_7B = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (4096, 11008),
    "mlp.up_proj": (4096, 11008),
    "mlp.down_proj": (11008, 4096),
}
LLAMA_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}


def write_tinyllama_logits(
    folder: str, base: str, *, h: int = 2048, b: int = 256, r: int = 4, layers: int = LAYERS
) -> None:
    """Write a PEFT checkpoint with logits: 103 MB with TinyLlama's layers."""
    os.makedirs(folder)
    rng = np.random.default_rng(0)
    specs: list[safetensors.Spec] = [("base_model.vblora_vector_bank", "F32", (h, b))]
    for layer in range(layers):
        for name, (i, o) in TINYLLAMA.items():
            key = f"base_model.model.model.layers.{layer}.{name}.vblora_logits_"
            specs += [(key + "A", "F32", (r, i // b, h)), (key + "B", "F32", (o // b, r, h))]

    def contents() -> Iterator[memoryview]:
        yield rng.uniform(-0.02, 0.02, (h, b)).astype("<f4").reshape(-1).view("u1").data
        for _, _, shape in specs[1:]:
            yield rng.standard_normal(shape, dtype=np.float32).reshape(-1).view("u1").data

    safetensors.write(os.path.join(folder, "adapter_model.safetensors"), specs, contents())
    config = {
        "peft_type": "VBLORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": r,
        "num_vectors": h,
        "vector_length": b,
        "topk": 2,
        "target_modules": [name.rpartition(".")[2] for name in TINYLLAMA],
        "inference_mode": True,
    }
    with open(os.path.join(folder, "adapter_config.json"), "w") as file:
        json.dump(config, file)


def llama_7b_logits() -> NDArray[np.float32]:
    """Return the logits for the 39,040 rows of Llama-2-7B with r = 4 and b = 256 (paper, Sec. 4.3),
    h = 2048: 320 MB."""
    return np.random.default_rng(0).standard_normal((39040, 2048), dtype=np.float32)


def large_adapters(count: int) -> Iterator[Adapter]:
    """Yield adapters of Llama-2-7B's shape with one bank (h = b = 256, k = 2, r = 4)."""
    modules = [
        Module(f"model.layers.{layer}.{name}", i, o, 4)
        for layer in range(32)
        for name, (i, o) in LLAMA_7B.items()
    ]
    generator = np.random.default_rng(0)
    bank = generator.standard_normal((256, 256))
    for _ in range(count):
        chosen = {}
        for module in modules:
            first = generator.integers(0, 128, module.rows(256))
            indices = np.stack([first, first + 128], axis=1).astype("u1")
            weights = generator.uniform(0, 0.49, (len(first), 1)).astype("<f4")
            chosen[module] = Rows(indices, weights)
        yield Adapter.from_rows(bank, chosen)
