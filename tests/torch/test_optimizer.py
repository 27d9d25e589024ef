"""The paper's learning rates, in a plain loop and in transformers' Trainer."""

from __future__ import annotations

import pytest
import torch

from tests.torch.models import config, llama, net
from vbfmt.torch import (
    VectorBank,
    adapters_of,
    inject,
    param_groups,
    save_packed,
    set_adapter,
)


def test_the_groups_are_all_that_trains_once():
    model = net()
    inject(model, config(bias="all", modules_to_save=["classifier"]))
    groups = param_groups(model)
    assert {g["name"]: g["lr"] for g in groups} == {"bank": 1e-3, "logits": 1e-2, "rest": 4e-3}
    grouped = [id(p) for g in groups for p in g["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}


def test_rates_can_be_given():
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
    inject(model, config(), name="one", bank=bank)
    inject(model, config(target_modules=["out"]), name="two")
    set_adapter(model, "one")
    assert [g["name"] for g in param_groups(model)] == ["logits"]
    assert len(param_groups(model)[0]["params"]) == 3


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
