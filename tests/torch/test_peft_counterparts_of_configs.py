"""PEFT's own tests of configs that run with VBLoRAConfig, rewritten for vbfmt.

tests/test_config.py
    test_methods, test_to_dict                test_a_config_round_trips_through_peft
    test_save_pretrained                      test_a_config_round_trips_through_peft
    test_from_json_file                       test_a_config_round_trips_through_peft
    test_save_pretrained_with_target_modules  test_a_config_round_trips_through_peft
    test_valid_task_type                      test_the_tasks_are_pefts
    test_invalid_task_type                    test_a_task_that_peft_does_not_know
    test_from_peft_type                       test_a_config_of_another_method_is_refused
    test_from_pretrained (3)                  test_a_hub_name_needs_its_scheme; `test_sources` loads
    test_save_pretrained_with_runtime_config  test_what_peft_adds_to_a_config_is_ignored
    test_set_attributes                       test_a_config_is_immutable (no such thing)
    test_config_copy, …deepcopy, …pickle_…    test_copies_are_equal
    test_from_pretrained_forward_… (2)        test_what_peft_adds_to_a_config_is_ignored
    test_from_pretrained_sanity_check         test_other_json_is_refused
    test_config_layers_to_transform_index_…   test_block_0_can_be_selected
    test_peft_version_… (4)                   test_what_peft_adds_to_a_config_is_ignored
"""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import peft
import pytest

from tests.torch.peft_models import MLP, made
from vbfmt.errors import ConfigError, VbfmtError
from vbfmt.torch import VBLoRAConfig, adapters_of, inject, load_checkpoint, save_checkpoint
from vbfmt.torch.checkpoint_file import read
from vbfmt.torch.config import TASKS

SETTINGS = {
    "r": 3, "num_vectors": 10, "vector_length": 2, "topk": 3, "target_modules": ["lin0", "lin1"],
    "bias": "vblora_only", "modules_to_save": ["lin3"], "vblora_dropout": 0.25,
}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """Return a checkpoint, its config as PEFT writes it, and a function that writes a changed
    config."""
    model = made(MLP)
    inject(model, VBLoRAConfig(**SETTINGS))
    folder = tmp_path / "checkpoint"
    save_checkpoint(model, folder)
    file = folder / "adapter_config.json"

    def write(**changes):
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return folder, write


def test_a_config_round_trips_through_peft(saved):
    folder, _ = saved
    theirs = peft.VBLoRAConfig.from_pretrained(str(folder))
    for name, value in SETTINGS.items():
        found = getattr(theirs, name)
        assert (sorted(found) if isinstance(found, set) else found) == value
    assert VBLoRAConfig.from_peft(theirs) == VBLoRAConfig.from_peft(theirs.to_dict())
    assert VBLoRAConfig.from_peft(theirs).r == 3
    theirs.save_pretrained(str(folder))
    config, _ = read(folder)
    assert sorted(config.target_modules) == ["lin0", "lin1"]
    assert isinstance(config.as_peft(), dict)


@pytest.mark.parametrize("task", [*peft.TaskType, None])
def test_the_tasks_are_pefts(task):
    assert VBLoRAConfig(task_type=task).task_type == task
    assert {*TASKS} == {each.value for each in peft.TaskType}


def test_a_task_that_peft_does_not_know():
    with pytest.raises(ConfigError, match="task_type: found 'invalid-task-type'.*SEQ_CLS"):
        VBLoRAConfig(task_type="invalid-task-type")


def test_a_config_of_another_method_is_refused():
    with pytest.raises(ConfigError, match="another kind of adapter.*expected VBLORA"):
        VBLoRAConfig.from_peft(peft.LoraConfig())


def test_a_hub_name_needs_its_scheme():
    with pytest.raises(VbfmtError):
        load_checkpoint(made(MLP), "somebody/some-adapter")


def test_what_peft_adds_to_a_config_is_ignored(saved):
    folder, write = saved
    before, _ = read(folder)
    write(foobar="baz", spam=123, peft_version="0.99", runtime_config={"ephemeral": True})
    assert read(folder)[0] == before
    assert adapters_of(load_checkpoint(made(MLP), folder).root).active == "default"


def test_a_config_is_immutable():
    config = VBLoRAConfig(**SETTINGS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.r = 4
    assert dataclasses.replace(config, r=4).r == 4


def test_copies_are_equal():
    config = VBLoRAConfig(**SETTINGS)
    copies = (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config)))
    assert all(each == config for each in copies)


def test_other_json_is_refused(saved):
    folder, _ = saved
    (folder / "adapter_config.json").write_text('{"foo": "bar", "baz": 123}')
    with pytest.raises(ConfigError, match="another kind of adapter.*peft_type.*expected VBLORA"):
        load_checkpoint(made(MLP), folder)


def test_block_0_can_be_selected():
    config = VBLoRAConfig(layers_to_transform=0, layers_pattern="model.layers")
    assert config.block_numbers == {0}
    assert config.layers_pattern == "model.layers"
