"""The paper's learning rates, in a plain loop and in transformers' Trainer."""

from __future__ import annotations

import pytest
import torch

from tests.torch.models import batch, config, llama, net
from vbfmt.errors import ModelError
from vbfmt.torch import (
    VectorBank,
    adapters_of,
    inject,
    param_groups,
    save_packed,
    set_adapter,
)


def test_the_groups_have_every_trainable_parameter_once():
    model = net()
    inject(model, config(bias="all", modules_to_save=["classifier"]))
    groups = param_groups(model)
    assert {g["name"]: g["lr"] for g in groups} == {"bank": 1e-3, "logits": 1e-2, "rest": 4e-3}
    grouped = [id(p) for g in groups for p in g["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}


def test_learning_rates_can_be_given():
    model = net()
    inject(model, config())
    groups = param_groups(model, lr_bank=1.0, lr_logits=2.0, weight_decay=0.5)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("bank", 1.0, 0.5),
        ("logits", 2.0, 0.5),
    ]
    assert "weight_decay" not in param_groups(model)[0]


def test_only_the_active_adapter_trains():
    model = net()
    bank = VectorBank(16, 8).freeze()
    inject(model, config(), adapter_name="one", bank=bank)
    inject(model, config(target_modules=["out"]), adapter_name="two")
    set_adapter(model, "one")
    assert [g["name"] for g in param_groups(model)] == ["logits"]
    assert len(param_groups(model)[0]["params"]) == 3


def test_logits_on_a_bank_from_a_seed_have_a_higher_rate():
    model = net()
    inject(model, config(), bank=VectorBank.from_seed(0, 16, 8))
    assert [(g["name"], g["lr"]) for g in param_groups(model)] == [("logits", 4e-2)]
    assert param_groups(model, lr_logits=0.5)[0]["lr"] == 0.5


def test_one_optimizer_of_several_adapters_has_their_shared_bank_once():
    model = net()
    bank = VectorBank(16, 8, init_bound=0.5)
    for name in ("one", "two"):
        inject(model, config(modules_to_save=["classifier"]), adapter_name=name, bank=bank)
    groups = param_groups(model, adapter_names=["one", "two"])
    assert [group["name"] for group in groups] == ["bank", "logits", "rest"]
    parameters = {group["name"]: group["params"] for group in groups}
    assert len(parameters["bank"]) == 1
    assert parameters["bank"][0] is bank.weight
    assert len({id(p) for group in groups for p in group["params"]}) == sum(
        len(group["params"]) for group in groups
    )
    adapters = adapters_of(model)
    for kind in ("logits", "rest"):
        each = [adapters.parameters_of(name)[kind] for name in ("one", "two")]
        assert {id(p) for p in parameters[kind]} == {id(p) for own in each for p in own}


def test_one_bank_is_trained_by_the_adapters_in_turn():
    model = net()
    bank = VectorBank(16, 8, init_bound=0.5)
    for name in ("one", "two"):
        inject(model, config(), adapter_name=name, bank=bank)
    optimizer = torch.optim.SGD(param_groups(model, adapter_names=["one", "two"]))
    adapters = adapters_of(model)
    for name, other in (("one", "two"), ("two", "one")):
        before = {
            key: [p.clone() for p in adapters.parameters_of(key)["logits"]]
            for key in ("one", "two")
        }
        bank_before = bank.weight.clone()
        set_adapter(model, name)
        x, y = batch()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        assert not torch.equal(bank.weight, bank_before)
        for key, changed in ((name, True), (other, False)):
            now = adapters.parameters_of(key)["logits"]
            same = all(torch.equal(a, b) for a, b in zip(now, before[key], strict=True))
            assert same is not changed


def test_an_adapter_to_be_trained_has_to_exist():
    model = net()
    inject(model, config())
    with pytest.raises(ModelError, match="no such adapter"):
        param_groups(model, adapter_names=["default", "other"])


@pytest.fixture
def trainer_of(tmp_path):
    from transformers import Trainer, TrainingArguments

    ids = torch.randint(0, 50, (8, 10), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids]

    def make(model, steps):
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "runs"),
            max_steps=steps,
            per_device_train_batch_size=4,
            save_steps=2,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            lr_scheduler_type="constant",
        )
        optimizer = torch.optim.AdamW(param_groups(model))
        return Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None))

    return make


def made(settings):
    torch.manual_seed(2)
    model = llama()
    inject(model, config(target_modules="all-linear", **settings))
    return model


def trained_tensors(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["norm"]}])
def test_transformers_trainer_trains_and_resumes(settings, trainer_of, tmp_path):
    # Older versions do not resume under PyTorch 2.6, which unpickles only tensors.
    pytest.importorskip("transformers", minversion="4.51")
    model = made(settings)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = trainer_of(model, steps=4)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}

    resumed = made(settings)
    trainer_of(resumed, steps=4).train(resume_from_checkpoint=str(tmp_path / "runs/checkpoint-2"))
    expected, found = trained_tensors(model), trained_tensors(resumed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert save_packed(resumed, tmp_path / "b.vblora") == save_packed(model, tmp_path / "a.vblora")
    assert adapters_of(resumed).active == "default"


def test_a_single_adapter_may_be_given_as_a_string(model):
    groups = param_groups(model, adapter_names="default")
    for one, other in zip(groups, param_groups(model), strict=True):
        assert list(map(id, one["params"])) == list(map(id, other["params"]))
