"""GPT-2 in llama.cpp. Its Conv1D layers store transposed weights."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.slow
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
gguf_package = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.converters.gguf.random_adapter import adapter_of  # noqa: E402
from vbfmt import Module  # noqa: E402
from vbfmt.converters import gguf, merge  # noqa: E402

WORDS = 64
TOKENS = [5, 3, 60, 17, 17, 42, 8, 33, 1, 0, 63, 21]
SHAPES = {
    "attn.c_attn": (64, 192),
    "attn.c_proj": (64, 64),
    "mlp.c_fc": (64, 256),
    "mlp.c_proj": (256, 64),
}
PLACES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=WORDS, n_positions=32, initializer_range=0.3
    )
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory, model):
    """Return the folder of a base, and the base as a GGUF file."""
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    write_gguf(folder / "base.gguf", model)
    return folder, folder / "base.gguf"


@pytest.fixture(scope="module")
def adapter():
    modules = [
        Module(f"transformer.h.{number}.{name}", *shape, 4, True)
        for number in range(2)
        for name, shape in SHAPES.items()
    ]
    return adapter_of(modules, b=16, scale=0.5)


def write_gguf(path, model):
    config = model.config
    writer = gguf_package.GGUFWriter(path, "gpt2")
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"w{number}" for number in range(WORDS)])
    writer.add_token_types([gguf_package.TokenType.NORMAL] * WORDS)
    writer.add_token_merges(["w 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    names = {
        "token_embd.weight": "transformer.wte.weight",
        "position_embd.weight": "transformer.wpe.weight",
        "output_norm.weight": "transformer.ln_f.weight",
        "output_norm.bias": "transformer.ln_f.bias",
    }
    for number in range(config.n_layer):
        for ours, theirs in PLACES.items():
            for kind in ("weight", "bias"):
                names[f"blk.{number}.{theirs}.{kind}"] = f"transformer.h.{number}.{ours}.{kind}"
    for name, source in names.items():
        value = state[source]
        transposed = source.rpartition(".")[0].endswith(tuple(SHAPES)) and value.ndim == 2
        writer.add_tensor(name, np.ascontiguousarray(value.T if transposed else value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def by_llama_cpp(base, lora_path=None):
    loaded = llama_cpp.Llama(
        str(base),
        lora_path=str(lora_path) if lora_path else None,
        n_ctx=32,
        n_threads=2,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        logits_all=True,
        verbose=False,
    )
    loaded.eval(TOKENS)
    return np.array(loaded.scores[: len(TOKENS)])


def by_transformers(folder):
    loaded = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return loaded(torch.tensor([TOKENS])).logits[0].numpy()


@pytest.mark.parametrize("from_config", [True, False], ids=["config", "GGUF base"])
def test_logits_are_those_of_the_merged_model_in_transformers(tmp_path, base, adapter, from_config):
    folder, file = base
    gguf.write(adapter, tmp_path / "lora.gguf", base=folder if from_config else file)
    merge.write(merge.plan(adapter, folder), tmp_path / "merged")
    without, expected = by_transformers(folder), by_transformers(tmp_path / "merged")
    alone = rms(by_llama_cpp(file) - without)  # llama.cpp has a table for GELU
    found = rms(by_llama_cpp(file, tmp_path / "lora.gguf") - expected)
    change = rms(expected - without)
    print(f"\nrms difference {found:.2g}, without the adapter {alone:.2g}; its effect {change:.3g}")
    assert change > 0.1 * rms(without)
    assert alone < 0.01 * change
    assert found < 0.01 * change


def rms(values):
    return float(np.sqrt(np.mean(values**2)))
