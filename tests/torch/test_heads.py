"""Fully trained modules (`modules_to_save`): the same as in PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.data.train_minilm import load_base
from tests.torch.models import batch, config, llama, net, peft_model, tokens
from vbfmt.errors import ModelError
from vbfmt.torch import (
    adapters_of,
    inject,
    load_checkpoint,
    save_checkpoint,
    warm_start,
)

MINILM = Path(__file__).parents[1] / "data" / "minilm-vblora"


def saved_modules(folder):
    return json.loads((folder / "adapter_config.json").read_text())["modules_to_save"]


def trained(model):
    return adapters_of(model).adapter().stand_ins.names


def test_a_real_checkpoint_whose_config_names_heads_missing_in_the_model(tmp_path):
    """For SEQ_CLS, PEFT writes ``classifier`` and ``score``, but no model has both."""
    pytest.importorskip("peft", minversion="0.14")  # 0.13 does not read newer configs
    assert saved_modules(MINILM) == ["classifier", "score"]
    ids = torch.randint(1000, 2000, (2, 9), generator=torch.Generator().manual_seed(0))
    ours, theirs = load_base().eval(), peft.PeftModel.from_pretrained(load_base(), str(MINILM))
    load_checkpoint(ours, MINILM)
    assert trained(ours) == ["classifier.weight", "classifier.bias"]
    with torch.no_grad():
        expected = theirs.eval()(ids).logits
        torch.testing.assert_close(ours(ids).logits, expected, rtol=0, atol=2e-6)
        save_checkpoint(ours, tmp_path / "again")
        again = peft.PeftModel.from_pretrained(load_base(), str(tmp_path / "again")).eval()
        torch.testing.assert_close(again(ids).logits, expected, rtol=0, atol=2e-6)


def test_a_checkpoint_without_its_head_is_not_loaded(tmp_path):
    from safetensors.torch import save_file

    model = net()
    inject(model, config(modules_to_save=["classifier"]))
    save_checkpoint(model, tmp_path / "checkpoint")
    weights = tmp_path / "checkpoint" / "adapter_model.safetensors"
    tensors = load_file(weights)
    del tensors["base_model.model.classifier.bias"]
    save_file(tensors, weights)
    with pytest.raises(ModelError, match=r"some tensors are missing on one side.*classifier\.bias"):
        load_checkpoint(net(), tmp_path / "checkpoint")


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_a_classifier_is_trained_and_saved_if_only_the_task_is_given(task, tmp_path):
    model = net()
    inject(model, config(task_type=task))
    assert trained(model) == ["classifier.weight", "classifier.bias"]
    with torch.no_grad():
        model.classifier.weight.mul_(2)
    x, _ = batch()
    save_checkpoint(model, tmp_path / "checkpoint")
    assert torch.equal(load_checkpoint(net(), tmp_path / "checkpoint").root(x), model(x))


def test_a_model_without_the_tasks_head_trains_no_head():
    model = nn.Sequential(nn.Linear(8, 8))
    inject(model, config(target_modules=["0"], task_type="SEQ_CLS"))
    assert trained(model) == []


def distilbert():
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 2, "vocab_size": 50}
    return DistilBertForSequenceClassification(DistilBertConfig(**sizes)).eval()


def bert_for_questions():
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    more = {"num_attention_heads": 2, "vocab_size": 50}
    return BertForQuestionAnswering(BertConfig(**sizes, **more)).eval()


@pytest.mark.parametrize(
    ("make", "task", "targets", "heads"),
    [
        (distilbert, "SEQ_CLS", ["q_lin"], ["classifier", "pre_classifier"]),
        (bert_for_questions, "QUESTION_ANS", ["query"], ["qa_outputs"]),
    ],
)
def test_the_heads_are_those_that_peft_trains_for_the_task(make, task, targets, heads, tmp_path):
    model = make()
    inject(model, config(target_modules=targets, task_type=task))
    assert sorted({name.rpartition(".")[0] for name in trained(model)}) == heads
    with torch.no_grad():
        for tensor in adapters_of(model).parameters_of("default")["rest"]:
            tensor.add_(0.1)
    save_checkpoint(model, tmp_path / "ours")
    assert saved_modules(tmp_path / "ours") == heads
    theirs = peft.PeftModel.from_pretrained(make(), str(tmp_path / "ours")).eval()
    torch.testing.assert_close(theirs(tokens())[0], model(tokens())[0], rtol=0, atol=1e-6)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    again = load_checkpoint(make(), tmp_path / "theirs").root
    assert torch.equal(again(tokens())[0], model(tokens())[0])


def test_a_norm_is_written_so_that_peft_does_not_match_other_norms(tmp_path):
    """PEFT compares the ends of names, so ``norm`` also matches ``input_layernorm``."""
    model = llama().eval()
    inject(model, config(target_modules=["q_proj"], modules_to_save=["norm"]))
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    save_checkpoint(model, tmp_path / "checkpoint")
    assert saved_modules(tmp_path / "checkpoint") == ["model.norm"]
    theirs = peft.PeftModel.from_pretrained(llama(), str(tmp_path / "checkpoint")).eval()
    ids = tokens()
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    again = load_checkpoint(llama().eval(), tmp_path / "checkpoint").root
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_all_layernorms_that_peft_trained_for_norm_are_loaded(tmp_path):
    theirs = peft_model(llama(), ["q_proj"], modules_to_save=["norm"]).eval()
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours = load_checkpoint(llama().eval(), tmp_path / "theirs").root
    assert len(trained(ours)) == 5
    ids = tokens()
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    more = {"num_attention_heads": 2, "vocab_size": 50}
    return BertForSequenceClassification(BertConfig(**sizes, **more)).eval()


@pytest.mark.parametrize("whole", ["classifier", "pooler"])
def test_a_checkpoint_of_peft_with_all_biases_and_a_head(whole, tmp_path):
    """It contains the head's biases two or three times, under names of PEFT's wrappers."""
    pytest.importorskip("peft", minversion="0.21")  # older versions do not save biases
    theirs = peft_model(bert(), ["query"], modules_to_save=[whole], bias="all").eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    keys = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert any("modules_to_save" in key for key in keys)
    ours = load_checkpoint(bert(), tmp_path / "theirs").root
    again = peft.PeftModel.from_pretrained(bert(), str(tmp_path / "theirs")).eval()
    ids = tokens()
    torch.testing.assert_close(ours(ids).logits, again(ids).logits, rtol=0, atol=1e-5)
    save_checkpoint(ours, tmp_path / "ours")
    load_checkpoint(ours, tmp_path / "theirs")


def test_a_name_that_peft_cannot_tell_from_others_is_refused_before_training():
    model = distilbert()
    settings = {"target_modules": ["q_lin"], "modules_to_save": ["classifier"]}
    with pytest.raises(ModelError, match=r"also match pre_classifier; name those as well"):
        inject(model, config(**settings))
    assert not hasattr(model, "vblora")
    settings["modules_to_save"] = ["classifier", "pre_classifier"]
    inject(model, config(**settings))
    assert len(trained(model)) == 4


def test_a_warm_start_from_a_real_checkpoint_can_be_saved(tmp_path):
    from vbfmt.converters import peft as peft_format
    from vbfmt.packed import save

    save(peft_format.read(MINILM), tmp_path / "minilm.vblora")
    model = load_base()
    warm_start(model, tmp_path / "minilm.vblora")
    save_checkpoint(model, tmp_path / "checkpoint")
    assert saved_modules(tmp_path / "checkpoint") == ["classifier"]
    load_checkpoint(load_base(), tmp_path / "checkpoint")
