"""GGUF LoRA files, read back with the gguf package."""

from __future__ import annotations

import dataclasses
import json
import struct

import numpy as np
import pytest

gguf_package = pytest.importorskip("gguf")

from spec.golden.make import wide_indices  # noqa: E402
from tests.converters.gguf.random_adapter import adapter_of, random_adapter  # noqa: E402
from vbfmt import Module, errors  # noqa: E402
from vbfmt.converters import gguf  # noqa: E402
from vbfmt.converters.gguf import counts  # noqa: E402
from vbfmt.converters.gguf.architectures import ARCHITECTURES  # noqa: E402

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def adapter():
    return random_adapter(layers=2, hidden=32, feed=48, kv=16, b=8)


def base(tmp_path, **changes):
    folder = tmp_path / "base"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return folder


def tensors_of(path):
    reader = gguf_package.GGUFReader(path)
    return reader, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def test_metadata_is_what_llama_cpp_asks_for(tmp_path, adapter):
    gguf.write(adapter, tmp_path / "x.gguf", base=base(tmp_path))
    reader, tensors = tensors_of(tmp_path / "x.gguf")
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.type"] == "adapter"
    assert said["adapter.type"] == "lora"
    assert said["general.architecture"] == "llama"
    assert said["adapter.lora.alpha"] == 4.0
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
def test_half_precision_is_the_same_rounding_as_in_a_lora_folder(tmp_path, adapter, dtype):
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


def test_a_gguf_base_says_the_same_as_its_config(tmp_path, adapter):
    shapes = {f"blk.{n}.attn_q.weight": (32, 32) for n in range(2)}
    shapes |= {f"blk.{n}.attn_k.weight": (16, 32) for n in range(2)}
    shapes |= {f"blk.{n}.attn_v.weight": (16, 32) for n in range(2)}
    shapes |= {f"blk.{n}.attn_output.weight": (32, 32) for n in range(2)}
    shapes |= {f"blk.{n}.ffn_{k}.weight": (48, 32) for n in range(2) for k in ("gate", "up")}
    shapes |= {f"blk.{n}.ffn_down.weight": (32, 48) for n in range(2)}
    file = write_base(tmp_path / "base.gguf", shapes)
    gguf.write(adapter, tmp_path / "one.gguf", base=file)
    gguf.write(adapter, tmp_path / "two.gguf", base=base(tmp_path))
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    wrong = write_base(tmp_path / "wrong.gguf", {**shapes, "blk.1.ffn_up.weight": (64, 32)})
    with pytest.raises(errors.TargetError, match=r"does not fit.*\(64, 32\).*\(48, 32\)"):
        gguf.write(adapter, tmp_path / "x.gguf", base=wrong)
    assert not (tmp_path / "x.gguf").exists()


def write_base(path, shapes):
    writer = gguf_package.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


NAMES = {
    "LlamaForCausalLM": "model.layers.1.self_attn.q_proj",
    "MistralForCausalLM": "model.layers.1.mlp.down_proj",
    "Qwen2ForCausalLM": "model.layers.1.self_attn.k_proj",
    "Qwen3ForCausalLM": "model.layers.1.self_attn.o_proj",
    "GemmaForCausalLM": "model.layers.1.mlp.gate_proj",
    "Gemma2ForCausalLM": "model.layers.1.mlp.up_proj",
    "Gemma3ForCausalLM": "model.layers.1.self_attn.v_proj",
    "Phi3ForCausalLM": "model.layers.1.self_attn.qkv_proj",
    "GPT2LMHeadModel": "transformer.h.1.attn.c_attn",
}


@pytest.mark.parametrize(("architecture", "name"), NAMES.items())
def test_every_promised_architecture_has_names(tmp_path, architecture, name):
    single = adapter_of([Module(name, 32, 96, 4)], b=8)
    folder = base(tmp_path, architectures=[architecture])
    gguf.write(single, tmp_path / "x.gguf", base=folder)
    _, tensors = tensors_of(tmp_path / "x.gguf")
    assert len(tensors) == 2
    assert all(key.startswith("blk.1.") for key in tensors)
    a, _ = single.factors(name)
    np.testing.assert_array_equal(next(v for k, v in tensors.items() if k.endswith("a")), a)


def test_the_table_and_the_package_agree_on_names():
    assert {a.name for a in ARCHITECTURES} <= set(gguf_package.MODEL_ARCH_NAMES.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "not known here.*found MambaForCausalLM"),
        ({"architectures": None}, "not known here"),
        ({"num_hidden_layers": 1}, "has no tensor for this module: model.layers.1"),
        ({"num_hidden_layers": 10**9}, "not usable as a base"),
        ({"num_attention_heads": "4"}, "not usable as a base"),
        ({"num_attention_heads": 5}, "do not divide into heads"),
    ],
)
def test_a_base_that_does_not_fit_is_one_error(tmp_path, adapter, changes, message):
    with pytest.raises(errors.VbfmtError, match=message):
        gguf.write(adapter, tmp_path / "x.gguf", base=base(tmp_path, **changes))
    assert not (tmp_path / "x.gguf").exists()


def test_a_tied_output_is_refused(tmp_path):
    single = adapter_of([Module("lm_head", 32, 96, 4)], b=8)
    with pytest.raises(errors.TargetError, match="tied to its embedding"):
        gguf.write(single, tmp_path / "x.gguf", base=base(tmp_path))


def test_without_a_base_the_error_says_what_to_give(tmp_path, adapter):
    with pytest.raises(errors.SourceError, match="--base PATH"):
        gguf.write(adapter, tmp_path / "x.gguf")


def test_a_folder_that_the_adapter_itself_names_as_its_base_is_not_opened(tmp_path, adapter):
    named = dataclasses.replace(adapter, base_model=str(base(tmp_path)))
    with pytest.raises(errors.SourceError, match="give its folder"):
        gguf.write(named, tmp_path / "x.gguf")


def test_extras_are_refused_unless_dropped(tmp_path):
    adapter = wide_indices()
    folder = base(tmp_path, architectures=["GPT2LMHeadModel"])
    with pytest.raises(errors.TargetError, match="--drop-extras"):
        gguf.write(adapter, tmp_path / "x.gguf", base=folder)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16, b"x" * 99])
def test_a_damaged_base_is_one_error(tmp_path, adapter, content):
    (tmp_path / "base.gguf").write_bytes(content)
    with pytest.raises(errors.SourceError, match="not a readable GGUF file"):
        gguf.write(adapter, tmp_path / "x.gguf", base=tmp_path / "base.gguf")


def gguf_bytes(*entries: bytes, tensors: int = 0, count: int | None = None) -> bytes:
    """A GGUF file of metadata entries, each after a name of one letter."""
    begin = struct.pack("<4sIQQ", b"GGUF", 3, tensors, len(entries) if count is None else count)
    return begin + b"".join(struct.pack("<Q", 1) + b"x" + entry for entry in entries)


HOSTILE_GGUF = {
    "array of 2^40 bytes": gguf_bytes(struct.pack("<IIQ", 9, 0, 2**40) + bytes(64)),
    "array whose size wraps": gguf_bytes(struct.pack("<IIQ", 9, 10, 2**61) + bytes(64)),
    "array of 2^40 strings": gguf_bytes(struct.pack("<IIQ", 9, 8, 2**40) + bytes(64)),
    "array of 2^40 arrays": gguf_bytes(struct.pack("<IIQ", 9, 9, 2**40) + bytes(64)),
    "arrays without end": gguf_bytes(struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 1000),
    "string of 2^63 bytes": gguf_bytes(struct.pack("<IQ", 8, 2**63)),
    "2^50 entries": gguf_bytes(count=2**50) + bytes(64),
    "2^50 tensors": gguf_bytes(tensors=2**50) + bytes(64),
    "10^6 dimensions": gguf_bytes(tensors=1) + struct.pack("<QIQ", 0, 10**6, 0) + bytes(64),
    "unknown type": gguf_bytes(struct.pack("<I", 99)),
}


@pytest.mark.parametrize("what", HOSTILE_GGUF)
@pytest.mark.timeout(20)
def test_counts_of_a_hostile_base_are_not_believed(tmp_path, adapter, what):
    """The gguf package walks through an array as long as the file says it is."""
    (tmp_path / "base.gguf").write_bytes(HOSTILE_GGUF[what])
    with pytest.raises(errors.SourceError, match="not a readable GGUF file"):
        gguf.write(adapter, tmp_path / "x.gguf", base=tmp_path / "base.gguf")


def test_counts_that_fit_are_passed_over(tmp_path):
    words = b"".join(struct.pack("<Q", len(word)) + word for word in (b"", b"a", b"bc"))
    nested = struct.pack("<IQ", 4, 2) + bytes(8)
    (tmp_path / "x.gguf").write_bytes(
        gguf_bytes(
            struct.pack("<IIQ", 9, 8, 3) + words,
            struct.pack("<IIQ", 9, 9, 2) + nested * 2,
            struct.pack("<I", 7) + b"\1",
            struct.pack("<IQ", 8, 2) + b"ok",
            tensors=1,
        )
        + struct.pack("<Q1sIQQIQ", 1, b"t", 2, 3, 4, 0, 0)
    )
    counts.require(tmp_path / "x.gguf")
