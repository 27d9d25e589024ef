"""Checkpoints that PEFT writes but cannot load. vbfmt reads them, and PEFT loads the result."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402

from tests.conftest import warned  # noqa: E402
from tests.converters import models  # noqa: E402
from vbfmt.converters import lora, peft  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_topk_files_in_half_precision(tmp_path, dtype):
    """PEFT fails with ``scatter(): Expected self.dtype to be equal to src.dtype``."""
    model = models.trained("llama", str(tmp_path))
    checkpoint = models.saved(model, str(tmp_path), only_topk=True)
    weights = os.path.join(checkpoint, "adapter_model.safetensors")
    halved = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in load_file(weights).items()
    }
    save_file(halved, weights, metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="scatter"):
        models.loaded("llama", str(tmp_path), checkpoint)

    peft.write(peft.read(checkpoint), tmp_path / "ours")
    lora.write(peft.read(checkpoint), tmp_path / "lora")
    with torch.no_grad():
        expected = models.outputs(model)
        ours = models.outputs(models.loaded("llama", str(tmp_path), str(tmp_path / "ours")))
        as_lora = models.outputs(models.loaded("llama", str(tmp_path), str(tmp_path / "lora")))
    torch.testing.assert_close(ours, as_lora, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours, expected, rtol=0.05, atol=0.05)


def test_negative_remainders_at_k_4(tmp_path):
    """Logits are far apart: three weights sum to more than 1, so PEFT takes the log of a negative
    number."""
    model = models.trained("llama", str(tmp_path), topk=4)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "vblora_logits" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 12
    checkpoint = models.saved(model, str(tmp_path), only_topk=True)
    with torch.no_grad():
        expected = models.outputs(model)
        broken = models.outputs(models.loaded("llama", str(tmp_path), checkpoint))
    assert expected.isfinite().all()
    assert broken.isnan().any()

    with warned() as messages:
        adapter = peft.read(checkpoint)
    assert "sum to more than 1" in messages[0]
    peft.write(adapter, tmp_path / "ours")
    lora.write(adapter, tmp_path / "lora")
    with torch.no_grad():
        for folder in ("ours", "lora"):
            found = models.outputs(models.loaded("llama", str(tmp_path), str(tmp_path / folder)))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_logits_that_were_saved_again_from_the_topk_form(tmp_path):
    """PEFT sets logits that are not selected to −∞. Such logits pack to the same selection."""
    model = models.trained("llama", str(tmp_path))
    checkpoint = models.saved(model, str(tmp_path), only_topk=True)
    again = models.loaded("llama", str(tmp_path), checkpoint)
    resaved = models.saved(again, str(tmp_path))
    one, other = peft.read(checkpoint), peft.read(resaved)
    assert (one.indices == other.indices).all()
    assert abs(one.weights - other.weights).max() < 1e-6
