"""GGUF LoRA files, read back with the gguf package."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest

gguf_package = pytest.importorskip("gguf")

from spec.golden.make import wide_indices  # noqa: E402
from tests.converters.gguf.bases import base  # noqa: E402
from tests.converters.gguf.random_adapter import adapter_of  # noqa: E402
from vbfmt import Module, errors  # noqa: E402
from vbfmt.converters import gguf  # noqa: E402
from vbfmt.converters.gguf.architectures import ARCHITECTURES  # noqa: E402


def tensors_of(path):
    reader = gguf_package.GGUFReader(path)
    return reader, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def test_metadata_is_what_llama_cpp_needs(tmp_path, adapter):
    gguf.write(adapter, tmp_path / "x.gguf", base=base(tmp_path))
    reader, tensors = tensors_of(tmp_path / "x.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.lora.alpha"] == 4.0
    assert reader.fields["adapter.lora.alpha"].types == [gguf_package.GGUFValueType.FLOAT32]
    assert len(tensors) == 2 * len(adapter)


def test_factors_are_exact_and_only_q_and_k_are_permuted(tmp_path, adapter):
    gguf.write(adapter, tmp_path / "x.gguf", base=base(tmp_path))
    _, tensors = tensors_of(tmp_path / "x.gguf")
    places = {"self_attn.q_proj": ("attn_q", 4), "self_attn.k_proj": ("attn_k", 2)}
    plain = {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
    plain |= {f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")}
    for module in adapter:
        layer, _, kind = module.name.removeprefix("model.layers.").partition(".")
        name, heads = places.get(kind, (plain.get(kind), None))
        a, b = adapter.factors(module.name)
        np.testing.assert_array_equal(tensors[f"blk.{layer}.{name}.weight.lora_a"], a)
        found = tensors[f"blk.{layer}.{name}.weight.lora_b"]
        if heads is None:
            np.testing.assert_array_equal(found, b)
        else:  # row 2i + j of a head is element i of its half j
            half = len(b) // heads // 2
            order = [
                head * 2 * half + j * half + i
                for head in range(heads)
                for i in range(half)
                for j in range(2)
            ]
            np.testing.assert_array_equal(found, b[order])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_as_in_a_lora_folder(tmp_path, adapter, dtype):
    gguf.write(adapter, tmp_path / "x.gguf", base=base(tmp_path), dtype=dtype)
    reader, tensors = tensors_of(tmp_path / "x.gguf")
    exact, _ = adapter.factors("model.layers.0.mlp.up_proj")
    found = tensors["blk.0.ffn_up.weight.lora_a"]
    if dtype == "bfloat16":
        import ml_dtypes

        found = found.view(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(found, exact.astype(ml_dtypes.bfloat16))
    else:
        np.testing.assert_array_equal(found, exact.astype(np.float16))
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {
        {"float16": "F16", "bfloat16": "BF16"}[dtype]
    }


SHAPES = {
    f"blk.{number}.{name}.weight": shape
    for number in range(2)
    for name, shape in {
        "attn_q": (32, 32),
        "attn_k": (16, 32),
        "attn_v": (16, 32),
        "attn_output": (32, 32),
        "ffn_gate": (48, 32),
        "ffn_up": (48, 32),
        "ffn_down": (32, 48),
    }.items()
}


def test_a_gguf_base_gives_the_same_file_as_its_config(tmp_path, adapter):
    file = write_base(tmp_path / "base.gguf", SHAPES)
    gguf.write(adapter, tmp_path / "one.gguf", base=file)
    gguf.write(adapter, tmp_path / "two.gguf", base=base(tmp_path))
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    wrong = write_base(tmp_path / "wrong.gguf", {**SHAPES, "blk.1.ffn_up.weight": (64, 32)})
    with pytest.raises(errors.TargetError, match=r"does not fit.*\(64, 32\).*\(48, 32\)"):
        gguf.write(adapter, tmp_path / "x.gguf", base=wrong)
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("counts", [{"kv": [2, 2]}, {"heads": [4, 4], "kv": [2, 2]}])
def test_an_array_of_head_counts_is_read(tmp_path, adapter, counts):
    """Earlier, it was ignored, and the rows of k were permuted with the number of heads of q."""
    file = write_base(tmp_path / "each.gguf", SHAPES, **counts)
    gguf.write(adapter, tmp_path / "one.gguf", base=file)
    gguf.write(adapter, tmp_path / "two.gguf", base=write_base(tmp_path / "all.gguf", SHAPES))
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


@pytest.mark.parametrize("counts", [{"kv": [2, 4]}, {"kv": [0, 0]}, {"heads": [4, 2]}])
def test_head_counts_that_differ_between_layers_are_refused(tmp_path, adapter, counts):
    file = write_base(tmp_path / "base.gguf", SHAPES, **counts)
    with pytest.raises(errors.SourceError, match=r"has an unusable value.*attention\.head_count"):
        gguf.write(adapter, tmp_path / "x.gguf", base=file)
    assert not (tmp_path / "x.gguf").exists()


def write_base(path, shapes, *, heads=4, kv=2):
    writer = gguf_package.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


NAMES = {
    "LlamaForCausalLM": ("llama", "model.layers.1.self_attn.q_proj", 32, 32),
    "MistralForCausalLM": ("mistral", "model.layers.1.mlp.down_proj", 48, 32),
    "SmolLM3ForCausalLM": ("smollm3", "model.layers.1.self_attn.k_proj", 32, 16),
    "GraniteForCausalLM": ("granite", "model.layers.1.self_attn.q_proj", 32, 32),
    "OlmoForCausalLM": ("olmo", "model.layers.1.self_attn.q_proj", 32, 32),
    "Olmo2ForCausalLM": ("olmo2", "model.layers.1.self_attn.q_proj", 32, 32),
    "Olmo3ForCausalLM": ("olmo3", "model.layers.1.self_attn.v_proj", 32, 16),
    "Qwen2ForCausalLM": ("qwen2", "model.layers.1.self_attn.k_proj", 32, 16),
    "Qwen3ForCausalLM": ("qwen3", "model.layers.1.self_attn.o_proj", 32, 32),
    "GemmaForCausalLM": ("gemma", "model.layers.1.mlp.gate_proj", 32, 48),
    "Gemma2ForCausalLM": ("gemma2", "model.layers.1.mlp.up_proj", 32, 48),
    "Gemma3ForCausalLM": ("gemma3_text", "model.layers.1.self_attn.v_proj", 32, 16),
    "Phi3ForCausalLM": ("phi3", "model.layers.1.self_attn.qkv_proj", 32, 64),
    "GPT2LMHeadModel": ("gpt2", "transformer.h.1.attn.c_attn", 32, 96),
    "Starcoder2ForCausalLM": ("starcoder2", "model.layers.1.mlp.c_fc", 32, 48),
}
SIZES_OF = {"gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4}}


def test_every_class_in_the_table_is_tested():
    assert set(NAMES) == {name for a in ARCHITECTURES for name in a.classes}


@pytest.mark.parametrize("architecture", NAMES)
def test_every_supported_architecture_has_names(tmp_path, architecture):
    kind, name, *sizes = NAMES[architecture]
    single = adapter_of([Module(name, *sizes, 4)], b=8)
    changes = {"model_type": kind, "head_dim": 8, **SIZES_OF.get(kind, {})}
    folder = base(tmp_path, architectures=[architecture], **changes)
    gguf.write(single, tmp_path / "x.gguf", base=folder)
    _, tensors = tensors_of(tmp_path / "x.gguf")
    assert len(tensors) == 2
    assert all(key.startswith("blk.1.") for key in tensors)
    a, _ = single.factors(name)
    np.testing.assert_array_equal(next(v for k, v in tensors.items() if k.endswith("a")), a)
    wrong = adapter_of([Module(name, sizes[0], sizes[1] * 2, 4)], b=8)
    with pytest.raises(errors.TargetError, match="the base does not fit the adapter"):
        gguf.write(wrong, tmp_path / "y.gguf", base=folder)


def test_the_table_and_the_package_agree_on_names():
    assert {a.name for a in ARCHITECTURES} <= set(gguf_package.MODEL_ARCH_NAMES.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            "unsupported architecture.*found MambaForCausalLM",
        ),
        ({"architectures": None}, "unsupported architecture"),
        ({"num_hidden_layers": 1}, "has no tensor for this module: model.layers.1"),
        ({"num_hidden_layers": 10**9}, "has an unusable value"),
        ({"num_attention_heads": "4"}, "has an unusable value"),
        ({"num_attention_heads": 5}, "does not fit the adapter"),
        ({"num_attention_heads": 32, "num_key_value_heads": 16}, "do not divide into heads"),
        ({"num_key_value_heads": 4}, r"does not fit the adapter.*k_proj: found \(32, 32\)"),
        ({"num_key_value_heads": None}, r"does not fit the adapter.*k_proj: found \(32, 32\)"),
        ({"head_dim": 16}, r"does not fit the adapter.*found \(32, 32\), expected \(16, 32\)"),
        ({"hidden_size": 64}, "does not fit the adapter"),
        ({"intermediate_size": 64}, r"does not fit the adapter.*found \(32, 64\)"),
        ({"hidden_size": None}, "hidden_size: found nothing"),
        ({"model_type": "mamba"}, "unknown kind of model"),
    ],
)
def test_a_base_that_does_not_fit_is_one_error(tmp_path, adapter, changes, message):
    with pytest.raises(errors.VbfmtError, match=message):
        gguf.write(adapter, tmp_path / "x.gguf", base=base(tmp_path, **changes))
    assert not (tmp_path / "x.gguf").exists()


def test_two_modules_with_one_gguf_name_are_one_error(tmp_path):
    """llama.cpp has one name for both. Earlier, the gguf package raised a ValueError for them."""
    names = ("model.layers.0.self_attn.q_proj", "layers.0.attention.wq")
    twice = adapter_of([Module(name, 32, 32, 4) for name in names], b=8)
    with pytest.raises(errors.TargetError, match=r"two modules.*found blk\.0\.attn_q\.weight, as"):
        gguf.write(twice, tmp_path / "x.gguf", base=base(tmp_path))
    assert not (tmp_path / "x.gguf").exists()


def test_a_tied_output_is_refused(tmp_path):
    single = adapter_of([Module("lm_head", 32, 96, 4)], b=8)
    with pytest.raises(errors.TargetError, match="tied to its embedding"):
        gguf.write(single, tmp_path / "x.gguf", base=base(tmp_path))


@pytest.mark.parametrize("tied", [None, "no"])
def test_an_output_is_refused_if_it_is_unknown_whether_it_is_tied(tmp_path, tied):
    single = adapter_of([Module("lm_head", 32, 96, 4)], b=8)
    folder = base(tmp_path, tie_word_embeddings=tied, vocab_size=96)
    with pytest.raises(errors.TargetError, match="does not say whether its output is tied.*GGUF"):
        gguf.write(single, tmp_path / "x.gguf", base=folder)


def test_an_untied_output_is_written_and_its_size_checked(tmp_path):
    single = adapter_of([Module("lm_head", 32, 96, 4)], b=8)
    folder = base(tmp_path, tie_word_embeddings=False, vocab_size=96)
    gguf.write(single, tmp_path / "x.gguf", base=folder)
    assert set(tensors_of(tmp_path / "x.gguf")[1]) == {
        "output.weight.lora_a",
        "output.weight.lora_b",
    }
    folder = base(tmp_path, tie_word_embeddings=False, vocab_size=97)
    with pytest.raises(errors.TargetError, match=r"found \(97, 32\), expected \(96, 32\)"):
        gguf.write(single, tmp_path / "y.gguf", base=folder)


def test_the_error_without_a_base_asks_for_one(tmp_path, adapter):
    with pytest.raises(errors.SourceError, match="`base=PATH`"):
        gguf.write(adapter, tmp_path / "x.gguf")


def test_a_folder_that_the_adapter_names_as_its_base_is_not_opened(tmp_path, adapter):
    named = dataclasses.replace(adapter, base_model=str(base(tmp_path)))
    with pytest.raises(errors.SourceError, match="give its folder"):
        gguf.write(named, tmp_path / "x.gguf")


def test_extras_are_refused_unless_dropped(tmp_path):
    adapter = wide_indices()
    gpt2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2}
    folder = base(tmp_path, architectures=["GPT2LMHeadModel"], **gpt2)
    with pytest.raises(errors.TargetError, match="drop_extras=True"):
        gguf.write(adapter, tmp_path / "x.gguf", base=folder)


def test_a_name_that_ggml_cannot_hold_is_refused(tmp_path, adapter, monkeypatch):
    monkeypatch.setattr(gguf, "_LONGEST_NAME", 20)
    with pytest.raises(errors.TargetError, match="a tensor's name is too long for ggml"):
        gguf.write(adapter, tmp_path / "x.gguf", base=base(tmp_path))
    assert not (tmp_path / "x.gguf").exists()


def test_no_base_model_is_written_if_the_adapter_names_none(tmp_path, adapter):
    nameless = dataclasses.replace(adapter, base_model=None)
    gguf.write(nameless, tmp_path / "x.gguf", base=base(tmp_path))
    reader, _ = tensors_of(tmp_path / "x.gguf")
    assert not any(name.startswith("general.base_model") for name in reader.fields)


def test_a_missing_base_is_one_error(tmp_path, adapter):
    with pytest.raises(errors.SourceError, match="no base model in .*: expected a folder with"):
        gguf.write(adapter, tmp_path / "x.gguf", base=tmp_path / "none")


def test_without_the_gguf_package_the_error_names_the_extra(tmp_path, adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(errors.MissingExtraError, match=r"vbfmt\[gguf\]"):
        gguf.write(adapter, tmp_path / "x.gguf", base=base(tmp_path))
