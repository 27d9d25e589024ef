"""Checkpoints: resuming is exact, and what does not fit is refused."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.torch.models import NET_TARGETS, batch, config, gpt2, llama, net, peft_model
from vbfmt.converters import peft as peft_format
from vbfmt.errors import (
    ConfigError,
    ContentError,
    ModelError,
    OutputExistsError,
    SourceError,
    StorageError,
)
from vbfmt.torch import (
    VectorBank,
    adapters_of,
    inject,
    load_checkpoint,
    load_packed,
    param_groups,
    save_checkpoint,
    save_packed,
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
def test_ten_steps_and_ten_more_are_twenty_bit_for_bit(tmp_path, ranks):
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


def test_every_adapter_of_a_model_is_saved_as_what_it_is(tmp_path):
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


def test_layers_that_peft_chose_by_number_are_those_that_the_checkpoint_has(tmp_path):
    theirs = peft_model(llama(), ["q_proj"], layers_to_transform=[1])
    theirs.save_pretrained(str(tmp_path / "theirs"))
    layers = load_checkpoint(llama(), tmp_path / "theirs").all_layers()
    assert list(layers) == ["model.layers.1.self_attn.q_proj"]
    packed = peft_format.read(tmp_path / "theirs")
    assert list(warm_start(llama(), packed).all_layers()) == list(layers)


def test_targets_are_written_so_that_they_fit_these_modules_alone(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 8))
    inject(model, config(target_modules="0|2"))
    save_checkpoint(model, tmp_path / "checkpoint")
    written = json.loads((tmp_path / "checkpoint" / "adapter_config.json").read_text())
    assert written["target_modules"] == "0|2"  # the names 0 and 2 would fit 1.0 as well
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


def test_ranks_that_peft_cannot_say_make_it_refuse_not_misread(tmp_path):
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


def test_ranks_of_modules_whose_names_end_alike(tmp_path):
    def made():
        inner = nn.ModuleDict({"out": nn.Linear(8, 8)})
        return nn.ModuleDict({"out": nn.Linear(8, 8), "inner": inner})

    model = made()
    ranks = {"inner.out": 2, "out": 1}
    inject(model, config(target_modules=["out"], rank_pattern=ranks))
    save_checkpoint(model, tmp_path / "checkpoint")
    layers = load_checkpoint(made(), tmp_path / "checkpoint").all_layers()
    assert {name: layer.updates["default"].rank for name, layer in layers.items()} == ranks


@pytest.fixture
def saved(tmp_path):
    model = net()
    inject(model, config())
    save_checkpoint(model, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def changed(folder, change):
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)


A_OF_OUT = "base_model.model.out.vblora_logits_A"


def test_an_adapter_of_another_model(saved):
    other = gpt2()
    before = repr(other)
    with pytest.raises(ModelError, match=r"another model.*found encoder\.0, encoder\.1, out"):
        load_checkpoint(other, saved)
    assert repr(other) == before


def test_an_adapter_of_another_config(saved):
    model = net()
    inject(model, config(r=5))
    with pytest.raises(ModelError, match="shapes differ"):
        load_checkpoint(model, saved)
    inject(model, config(bias="all"), adapter_name="second")
    with pytest.raises(ModelError, match="some tensors are missing on one side"):
        load_checkpoint(model, saved, adapter_name="second")


def test_biases_that_an_older_peft_did_not_save_are_explained(tmp_path):
    """PEFT 0.13 to 0.20: the config has them, the file does not."""
    model = net()
    inject(model, config(bias="vblora_only"))
    save_checkpoint(model, tmp_path / "checkpoint")
    changed(
        tmp_path / "checkpoint",
        lambda tensors: [tensors.pop(key) for key in list(tensors) if key.endswith(".bias")],
    )
    with pytest.raises(
        ModelError, match=r"some tensors are missing on one side.*PEFT before 0\.21 does not save"
    ):
        load_checkpoint(net(), tmp_path / "checkpoint")


def test_logits_of_another_k_are_not_loaded_into_an_adapter(saved):
    """Every shape fits, and the outputs would be others."""
    model = net()
    inject(model, config(topk=3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match=r"another k .*: topk: found 2, expected 3; eject it"):
        load_checkpoint(model, saved)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    load_checkpoint(model, saved, adapter_name="second")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors[A_OF_OUT].fill_(float("nan")),
        lambda tensors: tensors.pop("base_model.model.out.vblora_logits_B"),
        lambda tensors: tensors.update({A_OF_OUT: torch.zeros(3, 2, 16)}),
        lambda tensors: tensors.update({A_OF_OUT: tensors[A_OF_OUT].int()}),
        lambda tensors: tensors.update({"base_model.model.out.bias": torch.zeros(8)}),
    ],
)
def test_what_does_not_fit_changes_nothing(saved, change):
    changed(saved, change)
    model = net()
    before = repr(model)
    with pytest.raises((ContentError, ModelError)):
        load_checkpoint(model, saved)
    assert repr(model) == before
    assert all(parameter.requires_grad for parameter in model.parameters())
    inject(model, config())
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises((ContentError, ModelError)):
        load_checkpoint(model, saved)
    assert all(torch.equal(model.state_dict()[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_logits_that_are_not_finite(saved, value):
    changed(saved, lambda tensors: tensors[A_OF_OUT].view(-1)[3].fill_(value))
    model = net()
    with pytest.raises(ContentError, match=rf"{A_OF_OUT}.*1 of 192"):
        load_checkpoint(model, saved)


def test_a_diverged_run_is_not_written_out(tmp_path):
    model = net()
    inject(model, config())
    with torch.no_grad():
        model.out.updates["default"].logits[0, 0] = float("nan")
    with pytest.raises(ContentError, match="diverged"):
        save_checkpoint(model, tmp_path / "checkpoint")
    with pytest.raises(ContentError, match="out"):
        save_packed(model, tmp_path / "adapter.vblora")
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_diverged_is_neither_written_out_nor_loaded(tmp_path):
    model = net()
    inject(model, config(modules_to_save=["classifier"]))
    save_checkpoint(model, tmp_path / "checkpoint")
    with torch.no_grad():
        model.classifier.bias[1] = float("nan")
    with pytest.raises(ContentError, match=r"classifier\.bias: found 1 of 2; .*diverged"):
        save_checkpoint(model, tmp_path / "again")
    with pytest.raises(ContentError, match=r"classifier\.bias: found 1 of 2; .*diverged"):
        save_packed(model, tmp_path / "adapter.vblora")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    bias = "base_model.model.classifier.bias"
    changed(tmp_path / "checkpoint", lambda tensors: tensors[bias].fill_(float("nan")))
    with pytest.raises(ContentError, match=r"classifier\.bias: found 2 of 2"):
        load_checkpoint(net(), tmp_path / "checkpoint")


def test_a_mask_of_infinities_is_no_divergence(tmp_path):
    def made():
        model = net()
        model.classifier.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        return model

    model = made()
    inject(model, config(modules_to_save=["classifier"]))
    save_checkpoint(model, tmp_path / "checkpoint")
    load_checkpoint(made(), tmp_path / "checkpoint")


@pytest.mark.parametrize("active", [None, "other"])
def test_an_adapter_that_is_loaded_into_is_the_active_one_afterwards(tmp_path, active):
    """As one that is put in: whoever loads it means to go on with it."""
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


def test_what_the_user_froze_of_the_active_adapter_stays_frozen(tmp_path):
    model = net()
    inject(model, config(**SETTINGS))
    save_checkpoint(model, tmp_path / "checkpoint")
    model.classifier.requires_grad_(False)
    load_checkpoint(model, tmp_path / "checkpoint")
    assert not model.classifier.weight.requires_grad


def test_half_a_checkpoint(saved):
    changed(saved, lambda tensors: tensors.pop("base_model.model.out.vblora_logits_B"))
    with pytest.raises(ModelError, match="out.vblora_logits_B"):
        load_checkpoint(net(), saved)


def test_peft_s_top_k_form_cannot_be_trained_further(tmp_path):
    model = peft_model(net(), NET_TARGETS, save_only_topk_weights=True)
    model.save_pretrained(str(tmp_path / "topk"))
    with pytest.raises(SourceError, match=r"top-k form.*warm_start"):
        load_checkpoint(net(), tmp_path / "topk")


def test_a_packed_file_cannot_be_trained_further(tmp_path):
    model = net()
    inject(model, config())
    save_packed(model, tmp_path / "adapter.vblora")
    with pytest.raises(SourceError, match=r"load_packed.*warm_start"):
        load_checkpoint(net(), tmp_path / "adapter.vblora")
    packed = net()
    load_packed(packed, tmp_path / "adapter.vblora")
    with pytest.raises(ModelError, match=r"cannot be trained.*warm_start"):
        param_groups(packed)
    save_checkpoint(model, tmp_path / "checkpoint")
    with pytest.raises(ModelError, match="a packed adapter with that name"):
        load_checkpoint(packed, tmp_path / "checkpoint")
    with pytest.raises(ModelError, match="cannot be saved again"):
        save_checkpoint(packed, tmp_path / "again")


def test_files_that_are_no_checkpoint(tmp_path, saved):
    with pytest.raises(StorageError):
        load_checkpoint(net(), tmp_path / "nothing")
    (saved / "adapter_model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(SourceError, match="safetensors"):
        load_checkpoint(net(), saved)
    (saved / "adapter_config.json").write_text("[]")
    with pytest.raises(SourceError, match="JSON object"):
        load_checkpoint(net(), saved)


@pytest.mark.parametrize(
    "settings",
    [
        {"vblora_dropout": "much"},
        {"num_vectors": "16"},
        {"target_modules": 5},
        {"task_type": ["SEQ_CLS"]},
        {"rank_pattern": 3},
        {"bias": {}},
    ],
)
def test_a_config_of_other_types(saved, settings):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    model = net()
    with pytest.raises(ConfigError, match="a setting is not valid in .*checkpoint"):
        load_checkpoint(model, saved)
    assert not hasattr(model, "vblora")


def test_a_pickle_is_not_opened(saved):
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    with pytest.raises(SourceError, match="a pickle"):
        load_checkpoint(net(), saved)


def test_nothing_is_overwritten_unless_asked_for(saved):
    model = net()
    inject(model, config())
    for save in (save_checkpoint, save_packed):
        with pytest.raises(
            OutputExistsError, match="choose another name or give `overwrite=True`$"
        ):
            save(model, saved)
    save_checkpoint(model, saved, overwrite=True)
    load_checkpoint(net(), saved)


def test_a_layer_whose_full_name_ends_others_is_named_by_an_expression(tmp_path):
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


def test_another_bank_for_an_adapter_that_has_one_is_refused(saved):
    model = net()
    load_checkpoint(model, saved)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError, match="the adapter has a bank already in .*: adapter default"):
        load_checkpoint(model, saved, bank=VectorBank(16, 8))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_bank_of_other_sizes_than_the_config(saved):
    file = saved / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_vectors": 17}))
    with pytest.raises(SourceError, match=r"found \(16, 8\), expected \(17, 8\)"):
        load_checkpoint(net(), saved)


def test_a_config_of_ones_own_comes_back_from_pefts_form():
    settings = {"exclude_modules": ["head"], "layers_to_transform": [1, 3], "layers_pattern": "h"}
    one = config(**settings)
    written = one.as_peft()
    assert {name: written[name] for name in settings} == settings
    assert type(one).from_peft(written).as_peft() == written
