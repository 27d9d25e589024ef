"""Comparison with llama.cpp's convert_lora_to_gguf.py, from the source folder ``LLAMA_CPP``."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "LLAMA_CPP" not in os.environ, reason="LLAMA_CPP does not name llama.cpp's source folder"
    ),
]
gguf_package = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

from tests.converters.gguf.random_adapter import adapter_of  # noqa: E402
from vbfmt import Module  # noqa: E402
from vbfmt.converters import gguf, lora  # noqa: E402

SPLIT = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (32, 16),
    "self_attn.v_proj": (32, 16),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (32, 48),
    "mlp.up_proj": (32, 48),
    "mlp.down_proj": (48, 32),
}
FUSED = {
    "self_attn.qkv_proj": (32, 64),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_up_proj": (32, 96),
    "mlp.down_proj": (48, 32),
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
KINDS = {
    "Llama": SPLIT,
    "Mistral": SPLIT,
    "SmolLM3": SPLIT,
    "Granite": SPLIT,
    "Olmo": SPLIT,
    "Olmo2": SPLIT,
    "Qwen2": SPLIT,
    "Qwen3": SPLIT,
    "Gemma": SPLIT,
    "Gemma2": SPLIT,
    "Phi3": FUSED,
}


def by_their_script(folder, base):
    script = os.path.join(os.environ["LLAMA_CPP"], "convert_lora_to_gguf.py")
    outfile = folder / "theirs.gguf"
    words = ["--base", str(base), "--outfile", str(outfile), str(folder / "lora")]
    return outfile, subprocess.run([sys.executable, script, *words], capture_output=True, text=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_the_same(tmp_path, kind):
    config = getattr(transformers, f"{kind}Config")(**SIZES).to_dict()
    config["architectures"] = [f"{kind}ForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    adapter = adapter_of(
        [
            Module(f"model.layers.{layer}.{name}", *shape, 4)
            for layer in range(2)
            for name, shape in KINDS[kind].items()
        ],
        b=8,
    )
    lora.write(adapter, tmp_path / "lora")
    gguf.write(adapter, tmp_path / "ours.gguf", base=tmp_path)
    outfile, done = by_their_script(tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found, expected = (gguf_package.GGUFReader(p) for p in (tmp_path / "ours.gguf", outfile))
    names = ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha")
    for name in names:
        assert found.fields[name].contents() == expected.fields[name].contents()
    theirs = {tensor.name: tensor.data for tensor in expected.tensors}
    assert {tensor.name for tensor in found.tensors} == set(theirs)
    for tensor in found.tensors:
        np.testing.assert_array_equal(tensor.data, theirs[tensor.name])
