"""The config of a sum of adapters, and how PEFT reads it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.converters.merge.folders import adapter_of, tensor_of
from vbfmt.converters import lora
from vbfmt.converters.lowrank import combine

HEAD = {"head.weight": tensor_of(np.ones((8, 24)))}
EMBEDDING = {"embedding.weight": tensor_of(np.ones((8, 24)))}


def config_of(total):
    return json.loads(total.config or "{}")


@pytest.mark.parametrize("swapped", [False, True])
def test_the_config_of_the_adapter_with_a_trained_head_is_kept(swapped):
    plain = adapter_of(config='{"task_type":"CAUSAL_LM"}')
    classifier = adapter_of(config='{"task_type":"SEQ_CLS"}', tensors=HEAD, seed=1)
    parts = [classifier, plain] if swapped else [plain, classifier]
    total = combine.weighted(parts)
    assert config_of(total) == {"task_type": "SEQ_CLS"}
    assert combine.disagreement(total) == (
        f"the adapters were trained for different tasks: {', '.join(total.tasks)}"
    )
    assert sorted(total.tasks) == ["CAUSAL_LM", "SEQ_CLS"]


def test_if_one_adapter_has_a_config_it_is_kept():
    config = '{"modules_to_save":["head"],"task_type":"SEQ_CLS"}'
    parts = [adapter_of(), adapter_of(config=config, tensors=HEAD, seed=1)]
    assert combine.weighted(parts).config == config
    assert combine.weighted(parts[:1]).config is None
    assert combine.disagreement(combine.weighted(parts)) is None


def test_modules_to_save_of_all_adapters_are_kept(tmp_path):
    parts = [
        adapter_of(tensors=HEAD, config='{"modules_to_save":["head"]}'),
        adapter_of(tensors=EMBEDDING, config='{"modules_to_save":["embedding"]}', seed=1),
    ]
    lora.write(combine.weighted(parts), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written["modules_to_save"] == ["embedding", "head"]


@pytest.mark.parametrize("named", [None, '{"modules_to_save":["head"]}'])
def test_peft_loads_a_head_fully_trained_by_one_adapter_and_adapted_by_another(tmp_path, named):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    shapes = {"inner.layer": (16, 24), "inner.head": (8, 24)}
    trained = {"inner.head.weight": tensor_of(np.ones((8, 24)))}
    adapters = [
        adapter_of({"inner.layer": (16, 24)}, tensors=trained, config=named),
        adapter_of(shapes, seed=1),
    ]
    lora.write(combine.weighted(adapters), tmp_path / "out")
    layers = {"layer": torch.nn.Linear(24, 16), "head": torch.nn.Linear(24, 8)}
    model = torch.nn.ModuleDict({"inner": torch.nn.ModuleDict(layers)})
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "out")
    found = adapted.merge_and_unload()["inner"]["head"].weight.detach().numpy()
    wanted = 1 + adapters[1].delta("inner.head").astype(np.float64)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
