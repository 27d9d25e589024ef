"""Checkpoints: resuming is exact, and PEFT's config names the same layers."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.torch.models import batch, config, llama, net, peft_model
from vbfmt.converters import peft as peft_format
from vbfmt.errors import ModelError
from vbfmt.torch import (
    adapters_of,
    inject,
    load_checkpoint,
    param_groups,
    save_checkpoint,
    set_adapter,
    warm_start,
)

SETTINGS = {"bias": "all", "modules_to_save": ["classifier"], "vblora_dropout": 0.1}


def trained(model, optimizer, steps):
    for step in steps:
        torch.manual_seed(step)  # dropout
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("ranks", [{}, {"out": 1}])
def test_ten_steps_and_ten_resumed_steps_equal_twenty_bit_for_bit(tmp_path, ranks):
    torch.manual_seed(5)
    straight = net()
    inject(straight, config(**SETTINGS, rank_pattern=ranks))
    optimizer = torch.optim.AdamW(param_groups(straight))
    trained(straight, optimizer, range(10))
    save_checkpoint(straight, tmp_path / "checkpoint")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    trained(straight, optimizer, range(10, 20))

    resumed = net()
    load_checkpoint(resumed, tmp_path / "checkpoint")
    optimizer = torch.optim.AdamW(param_groups(resumed))
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    trained(resumed, optimizer, range(10, 20))

    expected, found = straight.state_dict(), resumed.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_loading_into_an_adapter_keeps_its_parameters_and_the_optimizer(tmp_path):
    model = net()
    inject(model, config(**SETTINGS))
    before = dict(model.named_parameters())
    save_checkpoint(model, tmp_path / "checkpoint")
    saved = {name: p.detach().clone() for name, p in before.items()}
    trained(model, torch.optim.AdamW(param_groups(model)), range(2))
    load_checkpoint(model, tmp_path / "checkpoint")
    after = dict(model.named_parameters())
    assert all(after[name] is before[name] for name in before)
    assert all(torch.equal(after[name], saved[name]) for name in saved)


def test_every_adapter_of_a_model_is_saved_with_its_own_values(tmp_path):
    model = net()
    inject(model, config(modules_to_save=["classifier"]), adapter_name="one")
    trained(model, torch.optim.AdamW(param_groups(model)), range(2))
    inject(model, config(modules_to_save=["classifier"]), adapter_name="two")
    save_checkpoint(model, tmp_path / "one", adapter_name="one")
    save_checkpoint(model, tmp_path / "two")
    heads = [
        load_file(tmp_path / name / "adapter_model.safetensors")["base_model.model.classifier.bias"]
        for name in ("one", "two")
    ]
    assert not torch.equal(*heads)
    assert torch.equal(heads[1], net().classifier.bias), "a new adapter begins with the base's head"


def test_layers_that_peft_selects_by_number_are_those_in_the_checkpoint(tmp_path):
    theirs = peft_model(llama(), ["q_proj"], layers_to_transform=[1])
    theirs.save_pretrained(str(tmp_path / "theirs"))
    layers = load_checkpoint(llama(), tmp_path / "theirs").all_layers()
    assert list(layers) == ["model.layers.1.self_attn.q_proj"]
    packed = peft_format.read(tmp_path / "theirs")
    assert list(warm_start(llama(), packed).all_layers()) == list(layers)


def test_written_targets_match_only_the_adapted_modules(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 8))
    inject(model, config(target_modules="0|2"))
    save_checkpoint(model, tmp_path / "checkpoint")
    written = json.loads((tmp_path / "checkpoint" / "adapter_config.json").read_text())
    assert written["target_modules"] == "0|2"  # the names 0 and 2 would also match 1.0
    loaded = peft_model(
        nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 8)),
        written["target_modules"],
    )
    assert not hasattr(loaded.base_model.model[1][0], "vblora_logits_A")
    assert hasattr(loaded.base_model.model[2], "vblora_logits_A")


def test_the_config_has_no_key_that_the_first_peft_with_vblora_refuses(tmp_path):
    model = net()
    inject(model, config())
    save_checkpoint(model, tmp_path / "checkpoint")
    written = json.loads((tmp_path / "checkpoint" / "adapter_config.json").read_text())
    assert "exclude_modules" not in written


def test_peft_refuses_ranks_that_its_config_cannot_express(tmp_path):
    import peft

    model = net()
    inject(model, config(rank_pattern={"out": 1}))
    save_checkpoint(model, tmp_path / "checkpoint")
    # PEFT 0.13 refuses a config key that it does not know; later ones warn and refuse the tensors.
    refused = pytest.raises((RuntimeError, TypeError), match="size mismatch|unexpected keyword")
    with warnings.catch_warnings(), refused:
        warnings.simplefilter("ignore")
        peft.PeftModel.from_pretrained(net(), str(tmp_path / "checkpoint"))
    assert len({module.rank for module in peft_format.read(tmp_path / "checkpoint")}) == 2


def test_ranks_of_modules_whose_names_have_the_same_ending(tmp_path):
    def made():
        inner = nn.ModuleDict({"out": nn.Linear(8, 8)})
        return nn.ModuleDict({"out": nn.Linear(8, 8), "inner": inner})

    model = made()
    ranks = {"inner.out": 2, "out": 1}
    inject(model, config(target_modules=["out"], rank_pattern=ranks))
    save_checkpoint(model, tmp_path / "checkpoint")
    layers = load_checkpoint(made(), tmp_path / "checkpoint").all_layers()
    assert {name: layer.updates["default"].rank for name, layer in layers.items()} == ranks


@pytest.mark.parametrize("active", [None, "other"])
def test_a_loaded_adapter_becomes_the_active_one(tmp_path, active):
    """As after `inject`, because it will usually be trained."""
    model, x = net(), batch()[0]
    inject(model, config(**SETTINGS))
    model.eval()
    save_checkpoint(model, tmp_path / "checkpoint")
    expected = model(x)
    inject(model, config(), adapter_name="other")
    set_adapter(model, active)
    load_checkpoint(model, tmp_path / "checkpoint")
    assert torch.equal(model(x), expected)
    own = adapters_of(model).parameters_of("default")
    trained_now = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained_now == {id(p) for group in own.values() for p in group}
    assert len(param_groups(model)) == 3


def test_parameters_that_the_user_froze_stay_frozen(tmp_path):
    model = net()
    inject(model, config(**SETTINGS))
    save_checkpoint(model, tmp_path / "checkpoint")
    model.classifier.requires_grad_(False)
    load_checkpoint(model, tmp_path / "checkpoint")
    assert not model.classifier.weight.requires_grad


def test_a_layer_whose_name_is_a_suffix_of_others_is_written_as_a_regex(tmp_path):
    def made():
        torch.manual_seed(0)
        return nn.ModuleDict(
            {"out": nn.Linear(8, 8), "inner": nn.ModuleDict({"out": nn.Linear(8, 8)})}
        )

    model = made()
    inject(model, config(target_modules="out"))
    save_checkpoint(model, tmp_path / "c")
    written = json.loads((tmp_path / "c" / "adapter_config.json").read_text())
    assert written["target_modules"] == "out"
    again = made()
    load_checkpoint(again, tmp_path / "c")
    assert list(again.vblora.all_layers()) == ["out"]


def test_a_custom_config_round_trips_through_pefts_form():
    settings = {"exclude_modules": ["head"], "layers_to_transform": [1, 3], "layers_pattern": "h"}
    one = config(**settings)
    written = one.as_peft()
    assert {name: written[name] for name in settings} == settings
    assert type(one).from_peft(written).as_peft() == written


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_the_bases_weight_of_an_adapted_head_is_not_trained(tmp_path):
    """PEFT saves this weight, too, and does not train it."""
    peft_model(llama(vocab_size=48), ["q_proj", "lm_head"]).save_pretrained(tmp_path)
    assert any(
        key.endswith("base_layer.weight") for key in load_file(*tmp_path.glob("*.safetensors"))
    )
    model = llama(vocab_size=48)
    for _ in range(2):  # the second time into the existing adapter
        load_checkpoint(model, tmp_path)
        trained = [name for name, each in model.named_parameters() if each.requires_grad]
        assert [name for name in trained if not name.endswith("logits")] == [
            "vblora.adapters.default.bank.weight"
        ]
    for other in (llama(seed=1, vocab_size=48), model):
        with torch.no_grad():
            model.lm_head.base_layer.weight[3, 4] += 1
        with pytest.raises(ModelError, match="another weight for a layer that it adapts.*lm_head"):
            load_checkpoint(other, tmp_path)
