"""TRL's trainers, where TRL is installed."""

from __future__ import annotations

import json
from math import log

import pytest
import torch

from tests.torch.models import config, llama
from vbfmt.torch import VBLoRACallback, inject, param_groups, reference_model

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")


@pytest.fixture
def tokenizer(tmp_path):
    """Return a tokenizer with 50 tokens, one for each letter."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: at for at, letter in enumerate("abcdefghijklmnopqrstuvwxyz .,?!")}
    vocabulary = {**letters, "<pad>": 48, "<eos>": 49}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def adapted():
    model = llama(max_position_embeddings=128)
    torch.manual_seed(5)
    inject(model, config(target_modules="all-linear"))
    return model


def arguments(kind, folder):
    return kind(
        output_dir=str(folder), max_steps=2, save_steps=2, per_device_train_batch_size=2,
        report_to=[], use_cpu=True, bf16=False, logging_steps=1, max_length=32, disable_tqdm=True,
    )  # fmt: skip


def optimizers(model):
    return torch.optim.AdamW(param_groups(model)), None


def test_sft(tmp_path, tokenizer):
    model = adapted()
    data = datasets.Dataset.from_list([{"text": "a file of this format begins"}] * 4)
    trainer = trl.SFTTrainer(
        model=model, args=arguments(trl.SFTConfig, tmp_path), train_dataset=data,
        processing_class=tokenizer, optimizers=optimizers(model), callbacks=[VBLoRACallback()],
    )  # fmt: skip
    trainer.train()
    names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert {"adapter_model.safetensors", "adapter.vblora"} <= names
    assert json.loads((tmp_path / "checkpoint-2" / "adapter_config.json").read_text())["r"] == 3


def dpo(folder, tokenizer, model, reference):
    rows = [{"prompt": "what is it?", "chosen": " a file.", "rejected": " a fish."}] * 4
    return trl.DPOTrainer(
        model=model, ref_model=reference, args=arguments(trl.DPOConfig, folder),
        train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
        optimizers=optimizers(model),
    )  # fmt: skip


def test_the_first_dpo_loss_of_an_adapter_is_the_logarithm_of_two(tmp_path, tokenizer):
    model = adapted()
    trainer = dpo(tmp_path, tokenizer, model, reference_model(model))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(log(2), abs=1e-6)
    assert losses[1] != losses[0]


def test_trl_refuses_a_vbfmt_config_as_peft_config(tmp_path, tokenizer):
    data = datasets.Dataset.from_list([{"text": "a file"}])
    with pytest.raises((TypeError, ValueError), match=r"must be a `peft.PeftConfig` instance"):
        trl.SFTTrainer(
            model=llama(), args=arguments(trl.SFTConfig, tmp_path), train_dataset=data,
            processing_class=tokenizer, peft_config=config(),
        )  # fmt: skip
