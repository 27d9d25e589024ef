"""Folders that vbfmt writes, loaded by vLLM's and SGLang's own code, without a GPU.

``VLLM_WHEEL`` and ``SGLANG_WHEEL`` are the paths of their wheels (``pip download --no-deps vllm``).
The files about LoRA are used unchanged; all other modules of the packages are fakes.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from tests.converters.gguf.random_adapter import adapter_of, random_adapter  # noqa: E402
from tests.converters.own_files import own_files as own_files  # noqa: E402
from vbfmt import Module, Tensor  # noqa: E402
from vbfmt.converters import lora, runtimes  # noqa: E402


@pytest.fixture
def adapter():
    return random_adapter(layers=2, hidden=32, feed=48, kv=16, b=8)


@pytest.fixture
def vllm(own_files):
    """Load a folder as vLLM's WorkerLoRAManager does."""
    names = ("peft_helper", "lora_weights", "utils", "lora_model")
    helper, _, _, model = own_files("VLLM_WHEEL", *(f"vllm.lora.{name}" for name in names))
    model.PIN_MEMORY = False

    def load(folder, leaves, *, max_rank=16):
        config = helper.PEFTHelper.from_local_dir(str(folder), None)
        config.validate_legal(SimpleNamespace(max_lora_rank=max_rank))
        return model.LoRAModel.from_local_checkpoint(
            str(folder), leaves, config, lora_model_id=1, device="cpu"
        )

    return load


def leaves_of(adapter):
    return {module.name.rpartition(".")[2] for module in adapter.modules}


def test_vllm_loads_every_factor_unscaled(tmp_path, adapter, vllm):
    lora.write(adapter, tmp_path / "x")
    loaded = vllm(tmp_path / "x", leaves_of(adapter))
    assert set(loaded.loras) == {module.name for module in adapter}
    for module in adapter:
        found = loaded.loras[module.name]
        a, b = adapter.factors(module.name)
        np.testing.assert_array_equal(found.lora_a.numpy(), a)
        np.testing.assert_array_equal(found.lora_b.numpy(), b)
        assert found.scaling == 1.0


def with_tensors(adapter, **shapes):
    import dataclasses

    tensors = {
        name: Tensor.of(np.ones(shape, np.float32)) for name, shape in sorted(shapes.items())
    }
    return dataclasses.replace(adapter, tensors=tensors)


EXTRAS = {
    "a bias": {"model.layers.0.self_attn.q_proj.bias": (32,)},
    "a norm": {"model.norm.weight": (32,)},
    "a head": {"score.weight": (3, 32)},
    "a head of two layers": {"classifier.dense.weight": (3, 32)},
    "two heads": {"score.weight": (3, 32), "classifier.weight": (3, 32)},
}


@pytest.mark.parametrize("what", EXTRAS)
def test_vllm_refuses_what_the_check_reports(tmp_path, adapter, vllm, what):
    trained = with_tensors(adapter, **EXTRAS[what])
    lora.write(trained, tmp_path / "x")
    effects = {finding.rule.effect for finding in runtimes.findings(trained, "vllm")}
    if "refuses" in effects:
        with pytest.raises(ValueError, match="not supported|only supports|unsupported|Only one"):
            vllm(tmp_path / "x", leaves_of(adapter))
    else:
        assert effects == {"needs"}
        assert set(vllm(tmp_path / "x", leaves_of(adapter)).modules_to_save) == {"score"}


@pytest.mark.parametrize("rank", [16, 17, 320, 512, 513])
def test_vllm_loads_ranks_up_to_its_maximum(tmp_path, vllm, rank):
    high = adapter_of([Module("model.layers.0.q_proj", 8, 8, rank)], b=8)
    lora.write(high, tmp_path / "x")
    found = runtimes.findings(high, "vllm")
    if rank <= 16:
        assert found == []
        vllm(tmp_path / "x", {"q_proj"})
        return
    with pytest.raises(ValueError, match="greater than max_lora_rank"):
        vllm(tmp_path / "x", {"q_proj"})
    if rank <= 512:
        (finding,) = found
        vllm(tmp_path / "x", {"q_proj"}, max_rank=int(finding.what.split()[-1]))
    else:
        assert found[0].rule.effect == "refuses"


@pytest.fixture
def sglang(own_files):
    """Load a folder as SGLang's LoRAManager does."""
    from safetensors.torch import load_file

    names = ("layers.utils.common", "layers.utils", "lora.lora_config", "lora.utils", "lora.lora")
    _, _, config, _, model = own_files("SGLANG_WHEEL", *(f"sglang.srt.{name}" for name in names))

    def load(folder, layers):
        read = config.LoRAConfig(str(folder))
        base = SimpleNamespace(num_hidden_layers=layers)
        result = model.LoRAAdapter("x", read, base, None, SimpleNamespace())
        result.initialize_weights_from_tensors(
            load_file(Path(folder) / "adapter_model.safetensors")
        )
        return result

    return load


def test_sglang_loads_every_factor_unscaled(tmp_path, adapter, sglang):
    lora.write(adapter, tmp_path / "x")
    loaded = sglang(tmp_path / "x", 2)
    assert loaded.scaling == 1.0
    fused = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    for number, layer in enumerate(loaded.layers):
        assert layer.weights
        for name, value in layer.weights.items():
            owner, kind, _ = name.removeprefix("base_model.model.").rsplit(".", 2)
            stem, _, leaf = owner.rpartition(".")
            assert f".{number}." in owner
            parts = [adapter.factors(f"{stem}.{part}") for part in fused.get(leaf, (leaf,))]
            expected = np.concatenate([pair[kind == "lora_B"] for pair in parts])
            np.testing.assert_array_equal(value.numpy(), expected)


def test_sglang_drops_what_the_check_reports(tmp_path, adapter, sglang):
    trained = with_tensors(adapter, **EXTRAS["a head"])
    lora.write(trained, tmp_path / "x")
    loaded = sglang(tmp_path / "x", 2)
    kept = [name for layer in loaded.layers for name in layer.weights]
    assert not any("score" in name for name in [*kept, *loaded.embedding_layers])
    (finding,) = runtimes.findings(trained, "sglang")
    assert str(finding).startswith("sglang drops score.weight")


@pytest.mark.parametrize(
    ("leaves", "effect"),
    [
        (["q_proj", "v_proj"], None),
        (["q_proj", "k_proj", "v_proj"], None),
        (["gate_proj"], None),
        (["q_proj"], "refuses"),
        (["q_proj", "k_proj"], "refuses"),
        (["v_proj"], "drops"),
        (["up_proj"], "drops"),
    ],
)
def test_sglang_fuses_layers_as_the_check_reports(tmp_path, sglang, leaves, effect):
    some = adapter_of([Module(f"model.layers.0.{leaf}", 8, 8, 4) for leaf in leaves], b=8)
    lora.write(some, tmp_path / "x")
    assert [finding.rule.effect for finding in runtimes.findings(some, "sglang")] == (
        [effect] if effect else []
    )
    if effect == "refuses":
        with pytest.raises(KeyError):
            sglang(tmp_path / "x", 1)
        return
    (layer,) = sglang(tmp_path / "x", 1).layers
    fused = all("qkv_proj" in name or "gate_up_proj" in name for name in layer.weights)
    assert fused == (effect is None)


def test_sglang_loads_the_output_layer(tmp_path, sglang):
    output = adapter_of([Module("lm_head", 8, 8, 4)], b=8)
    lora.write(output, tmp_path / "x")
    assert len(sglang(tmp_path / "x", 1).embedding_layers) == 2
    assert runtimes.findings(output, "sglang") == []


def test_sglang_does_not_adapt_gpt2(tmp_path, sglang):
    other = adapter_of([Module("transformer.h.0.attn.c_attn", 8, 8, 4)], b=8)
    lora.write(other, tmp_path / "x")
    assert not sglang(tmp_path / "x", 1).layers[0].weights
    (finding,) = runtimes.findings(other, "sglang")
    assert str(finding).startswith("sglang drops transformer.h.0.attn.c_attn")
