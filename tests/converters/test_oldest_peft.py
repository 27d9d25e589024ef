"""PEFT 0.13, the first with VB-LoRA, loads what vbfmt writes.

``PEFT_0_13`` is the path of a Python with this version. ``make runtimes`` creates one.
"""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("PEFT_0_13" not in os.environ, reason="PEFT_0_13 names no Python"),
]
torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from tests.converters import models  # noqa: E402
from vbfmt.converters import lora, peft, read  # noqa: E402

CLASSES = {
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "bert": "BertForSequenceClassification",
}
PROGRAM = """
import sys
import numpy, peft, torch, transformers
base, adapter, kind, out = sys.argv[1:]
assert peft.__version__.startswith("0.13."), peft.__version__
model = getattr(transformers, kind).from_pretrained(base)
model = peft.PeftModel.from_pretrained(model, adapter).eval()
with torch.no_grad():
    numpy.save(out, model(input_ids=torch.arange(24).reshape(2, 12) % 64).logits.numpy())
"""


@pytest.mark.parametrize("form", ["lora", "vblora"])
@pytest.mark.parametrize("kind", CLASSES)
def test_the_oldest_and_the_newest_peft_give_the_same_outputs(tmp_path, kind, form):
    model = models.trained(kind, str(tmp_path))
    adapter = read(models.saved(model, str(tmp_path)))
    {"lora": lora, "vblora": peft}[form].write(adapter, tmp_path / "adapter")
    words = [tmp_path / "base", tmp_path / "adapter", CLASSES[kind], tmp_path / "out.npy"]
    done = subprocess.run(
        [os.environ["PEFT_0_13"], "-c", PROGRAM, *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        expected = models.outputs(model).numpy()
    found = np.load(tmp_path / "out.npy")
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()
    print(f"\n{kind}, {form}: {np.abs(found - expected).max() / np.abs(expected).max():.2g}")
