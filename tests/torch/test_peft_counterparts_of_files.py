"""PEFT's own VB-LoRA tests, rewritten for vbfmt: what is saved and loaded.

Which test of PEFT is which one here: the table in `test_peft_counterparts`.
"""

from __future__ import annotations

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.torch.peft_models import (
    CUSTOM,
    MLP,
    A,
    assert_equal,
    made,
    ours,
    output,
    theirs,
    values,
)
from vbfmt import load
from vbfmt.errors import ModelError, SourceError
from vbfmt.torch import (
    VBLoRAConfig,
    adapters_of,
    inject,
    load_checkpoint,
    load_packed,
    param_groups,
    save_checkpoint,
    save_packed,
)
from vbfmt.torch.checkpoint_file import read


@pytest.fixture(params=CUSTOM)
def case(request):
    return request.param


def test_the_topk_form_has_k_indices_and_fewer_weights(tmp_path):
    model = made(MLP)
    settings = {"target_modules": ["lin0", "lin3"], "vector_length": 2, "num_vectors": 10}
    inject(model, VBLoRAConfig(**settings, topk=3))
    save_packed(model, tmp_path / "adapter.vblora")
    adapter = load(tmp_path / "adapter.vblora")
    n = 4 * (10 + 20 + 20 + 2) // 2
    assert adapter.indices.shape == (n, 3)
    assert adapter.weights.shape == (n, 2)
    assert adapter.indices.dtype == "uint8"


@pytest.mark.parametrize("packed", [False, True])
def test_outputs_are_the_same_after_saving_and_loading(case, packed, tmp_path):
    model, x = ours(case)
    model(x).sum().backward()
    base = made(CUSTOM[case][0], seed=0)
    if packed:
        save_packed(model, tmp_path / "adapter.vblora")
        load_packed(base, tmp_path / "adapter.vblora")
    else:
        save_checkpoint(model, tmp_path / "checkpoint")
        load_checkpoint(base, tmp_path / "checkpoint")
    torch.testing.assert_close(output(base, x), output(model, x), rtol=1e-5, atol=1e-6)
    untouched = made(CUSTOM[case][0])
    assert not torch.allclose(output(untouched, x), output(model, x), atol=1e-5)


def test_the_topk_form_cannot_be_trained_further(tmp_path):
    model = made(MLP)
    inject(model, VBLoRAConfig(**A))
    save_packed(model, tmp_path / "adapter.vblora")
    fresh = made(MLP)
    load_packed(fresh, tmp_path / "adapter.vblora")
    with pytest.raises(ModelError, match="it holds no logits.*warm_start"):
        param_groups(fresh)
    other = peft.get_peft_model(made(MLP), peft.VBLoRAConfig(**A, save_only_topk_weights=True))
    other.save_pretrained(str(tmp_path / "topk"))
    with pytest.raises(SourceError, match="without logits cannot be trained further.*top-k form"):
        load_checkpoint(made(MLP), tmp_path / "topk")


class Renamed(nn.Module):
    """An MLP inside another module, as when transformers renames parts of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = MLP()


def test_layers_with_other_names_are_refused(tmp_path):
    model = made(MLP)
    inject(model, VBLoRAConfig(**A))
    save_checkpoint(model, tmp_path / "checkpoint")
    with pytest.raises(ModelError, match="layers that this one does not have.*found lin0"):
        load_checkpoint(made(Renamed), tmp_path / "checkpoint")


@pytest.mark.filterwarnings("error")
def test_a_checkpoint_is_two_files_with_every_value(case, tmp_path):
    model, x = ours(case)
    optimizer = torch.optim.SGD(param_groups(model), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
    save_checkpoint(model, tmp_path / "checkpoint")
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    fresh = made(CUSTOM[case][0])
    load_checkpoint(fresh, tmp_path / "checkpoint")
    assert_equal(values(fresh), values(model))


def test_a_pickle_is_not_read(case, tmp_path):
    other = theirs(case)
    other.save_pretrained(str(tmp_path), safe_serialization=False)
    with pytest.raises(SourceError, match="a pickle.*adapter_model.bin.*safe_serialization=True"):
        load_checkpoint(made(CUSTOM[case][0]), tmp_path)


def test_only_the_named_adapter_is_saved(case, tmp_path):
    kind, settings = CUSTOM[case]
    model = made(kind)
    inject(model, VBLoRAConfig(**settings))
    expected = len(values(model))
    for name in ("default2", "other_default", "foodefault_bar", "efaul"):
        inject(model, VBLoRAConfig(**settings), adapter_name=name)
    save_checkpoint(model, tmp_path / "checkpoint", adapter_name="default")
    saved = load_file(tmp_path / "checkpoint" / "adapter_model.safetensors")
    assert len(saved) == expected
    fresh = made(kind)
    load_checkpoint(fresh, tmp_path / "checkpoint")
    assert_equal(values(fresh), values(model, "default"))


def test_a_checkpoint_has_its_config(case, tmp_path):
    model, _ = ours(case, r=3, topk=1)
    save_checkpoint(model, tmp_path / "checkpoint")
    config, _ = read(tmp_path / "checkpoint")
    own = CUSTOM[case][1]
    assert (config.r, config.topk) == (3, 1)
    assert (config.num_vectors, config.vector_length) == (own["num_vectors"], own["vector_length"])
    assert list(config.modules_to_save) == own.get("modules_to_save", [])
    loaded = load_checkpoint(made(CUSTOM[case][0]), tmp_path / "checkpoint")
    assert [*loaded.all_layers()] == [*adapters_of(model).all_layers()]
    of_peft = peft.PeftConfig.from_pretrained(str(tmp_path / "checkpoint"))
    assert isinstance(of_peft, peft.VBLoRAConfig)
    assert (of_peft.r, of_peft.topk, of_peft.inference_mode) == (3, 1, True)


def test_a_checkpoint_is_loaded_under_several_names(case, tmp_path):
    model, x = ours(case)
    save_checkpoint(model, tmp_path / "checkpoint")
    fresh = made(CUSTOM[case][0])
    for name in ("default", "other", "yet-another"):
        load_checkpoint(fresh, tmp_path / "checkpoint", adapter_name=name)
        torch.testing.assert_close(output(fresh, x), output(model, x))
        assert_equal(values(fresh, name), values(model))
