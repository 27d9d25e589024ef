"""Training with transformers' Trainer: checkpoints contain the adapter and resume bit for bit."""

from __future__ import annotations

import copy
import pickle

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Trainer, TrainingArguments

from tests.torch.models import config, llama, tokens
from vbfmt import load, pack
from vbfmt.errors import ModelError, VbfmtWarning
from vbfmt.torch import (
    VBLoRACallback,
    disabled,
    eject,
    get_adapter_state_dict,
    inject,
    load_checkpoint,
    load_packed,
    param_groups,
    reference_model,
    set_adapter,
    to_adapter,
)

SETTINGS = {"target_modules": "all-linear", "vblora_dropout": 0.1}
OF_AN_ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
OF_THE_TRAINER = {
    "model.safetensors",  # the adapter's weights, with the name that the Trainer reads
    "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json", "training_args.bin",
}  # fmt: skip


def data():
    return [{"input_ids": row, "labels": row} for seed in range(4) for row in tokens(seed, 2)]


def trainer(folder, model=None, *, callbacks=None, **arguments):
    if model is None:
        model = llama()
        torch.manual_seed(5)
        inject(model, config(**SETTINGS))
    settings = {
        "max_steps": 6, "save_steps": 3, "per_device_train_batch_size": 2, "report_to": [],
        "lr_scheduler_type": "cosine", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1,
        **arguments,
    }  # fmt: skip
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=data(),
        eval_dataset=data()[:2],
        optimizers=(torch.optim.AdamW(param_groups(model)), None),
        callbacks=callbacks,
    )


def assert_same_adapter(model, other):
    found, expected = get_adapter_state_dict(model), get_adapter_state_dict(other)
    assert found.keys() == expected.keys()
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


def test_a_checkpoint_has_only_the_adapter_and_resumes_bit_for_bit(tmp_path):
    # Older versions do not resume under PyTorch 2.6, which unpickles only tensors.
    pytest.importorskip("transformers", minversion="4.51")
    whole = trainer(tmp_path / "one")
    whole.train()
    checkpoint = tmp_path / "one" / "checkpoint-3"
    assert {path.name for path in checkpoint.iterdir()} == OF_AN_ADAPTER | OF_THE_TRAINER
    assert (checkpoint / "model.safetensors").samefile(checkpoint / "adapter_model.safetensors")
    assert (checkpoint / "model.safetensors").stat().st_size < 90_000
    resumed = trainer(tmp_path / "two")
    before = [p.clone() for p in resumed.model.parameters() if not p.requires_grad]
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_adapter(resumed.model, whole.model)
    after = [p for p in resumed.model.parameters() if not p.requires_grad]
    assert all(map(torch.equal, before, after)), "the base stays"
    assert [x.get("loss") for x in resumed.state.log_history][-2] == pytest.approx(
        [x.get("loss") for x in whole.state.log_history][-2], abs=0
    )


def test_resuming_an_adapter_with_different_sizes_is_refused(tmp_path):
    trainer(tmp_path, max_steps=3).train()
    other = llama()
    inject(other, config(**SETTINGS, num_vectors=20))
    with pytest.raises(ModelError, match="belongs to another model or config: shapes differ"):
        trainer(tmp_path, other).train(resume_from_checkpoint=True)


def test_the_best_model_is_restored(tmp_path):
    made = trainer(
        tmp_path,
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=3,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the worst model, which is not the last
    )
    made.train()
    assert made.state.best_model_checkpoint.endswith("checkpoint-3")
    best = llama()
    load_checkpoint(best, tmp_path / "checkpoint-3")
    assert_same_adapter(made.model, best)


def test_the_callback_packs_every_checkpoint(tmp_path):
    made = trainer(tmp_path, callbacks=[VBLoRACallback()])
    made.train()
    assert load(tmp_path / "checkpoint-6" / "adapter.vblora") == to_adapter(made.model)
    other = llama()
    load_packed(other, tmp_path / "checkpoint-3" / "adapter.vblora")


def test_a_checkpoint_of_the_trainer_packs_directly(tmp_path):
    made = trainer(tmp_path, max_steps=1, save_steps=1)
    made.train()
    pack(tmp_path / "checkpoint-1", tmp_path / "x.vblora")
    assert load(tmp_path / "x.vblora") == to_adapter(made.model)


def test_the_callback_warns_of_checkpoints_elsewhere(tmp_path):
    made = trainer(tmp_path, callbacks=[VBLoRACallback()], max_steps=1, save_steps=1)
    made._get_output_dir = lambda trial: str(tmp_path / "run-0")  # as in a hyperparameter search
    with pytest.warns(VbfmtWarning, match="there is no .*checkpoint-1, so adapter.vblora was not"):
        made.train()
    assert not (tmp_path / "checkpoint-1").exists()


def test_gradient_checkpointing_needs_no_further_call(tmp_path):
    plain = trainer(tmp_path / "one")
    plain.train()
    checkpointed = trainer(tmp_path / "two", gradient_checkpointing=True)
    checkpointed.train()
    for key, tensor in get_adapter_state_dict(plain.model).items():
        found = get_adapter_state_dict(checkpointed.model)[key]
        torch.testing.assert_close(found, tensor, rtol=1e-4, atol=1e-6)


@pytest.fixture
def saved(tmp_path):
    """Return the folder of a base, and that of an adapter saved from a model on this base."""
    llama().save_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    inject(model, config(**SETTINGS, modules_to_save=["lm_head"], task_type="CAUSAL_LM"))
    model.eval().save_pretrained(tmp_path / "adapter")
    return tmp_path, model


def test_save_pretrained_writes_an_adapter(saved):
    folder, model = saved
    assert {path.name for path in (folder / "adapter").iterdir()} == OF_AN_ADAPTER
    other = llama()
    load_checkpoint(other, folder / "adapter")
    assert_same_adapter(other, model)
    with disabled(model), pytest.raises(ModelError, match="none is active; call set_adapter"):
        model.save_pretrained(folder / "nothing")
    with pytest.raises(ModelError, match="hf upload"):
        model.save_pretrained(folder / "nothing", push_to_hub=True)
    assert not (folder / "nothing").exists()


def test_peft_loads_what_was_written_as_the_same_model(saved):
    folder, model = saved
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(folder / "adapter").eval()
    found, expected = (each(input_ids=tokens()).logits for each in (loaded, model))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [AutoModelForCausalLM, LlamaForCausalLM])
def test_transformers_itself_refuses_what_was_written(saved, kind):
    """PEFT cannot inject a VB-LoRA adapter in place. It is an error, never a model without
    adapter."""
    pytest.importorskip("transformers", minversion="5")  # older: a plain model
    with pytest.raises(ValueError, match="does not support PeftType.VBLORA"):
        kind.from_pretrained(saved[0] / "adapter")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_saves_its_own_adapter(saved, tmp_path, copied):
    _, model = saved
    twin = copied(model)
    with torch.no_grad():
        twin.vblora.adapter().bank.weight.zero_()
    twin.save_pretrained(tmp_path / "twin")
    other = llama()
    load_checkpoint(other, tmp_path / "twin")
    assert not other.vblora.adapter().bank.weight.any()
    eject(twin)
    twin.save_pretrained(tmp_path / "base-again")
    assert (tmp_path / "base-again" / "model.safetensors").exists()


def test_a_reference_model_has_the_current_adapter_and_shares_memory():
    model = llama()
    inject(model, config(**SETTINGS, modules_to_save=["lm_head"]))
    inject(model, config(**SETTINGS), adapter_name="second")
    set_adapter(model, "default")
    reference = reference_model(model)
    expected = model.eval()(tokens()).logits
    assert torch.equal(reference(tokens()).logits, expected)
    assert not any(p.requires_grad for p in reference.parameters())
    base = {p.data_ptr() for p in model.parameters() if not p.requires_grad}
    new = [p for p in reference.parameters() if p.data_ptr() not in base]
    assert sum(map(torch.numel, new)) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(2)
    assert torch.equal(reference(tokens()).logits, expected)
    assert not torch.equal(model(tokens()).logits, expected)
