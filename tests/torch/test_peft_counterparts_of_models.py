"""PEFT's own VB-LoRA tests, rewritten for vbfmt: transformers models, compiled models, old files.

See `test_peft_counterparts` for the other tables. PEFT runs these with four kinds of models: a
decoder, an encoder-decoder, one that returns features, and a classifier.

tests/test_decoder_models.py, test_encoder_decoder_models.py, test_feature_extraction_models.py,
tests/test_seq_classifier.py
    test_prepare_for_training_parametrized    test_a_model_prepared_for_few_bits_is_trained
    test_save_pretrained_selected_adapters    test_every_adapter_has_its_own_folder
    test_merge_layers                         test_a_merged_model_is_saved_as_a_plain_model
    test_merge_layers_multi                   test_one_of_two_adapters_is_merged
    test_merge_layers_nan                     test_an_adapter_with_nan_is_not_merged
    test_generate, test_generate_pos_args     test_generate
    test_generate_half_prec                   test_generate_in_half_precision
    test_training…                            test_every_parameter_of_the_adapter_has_a_gradient
    test_training…_gradient_checkpointing     test_gradients_reach_all_parameters_with_checkpointing
    test_unload_adapter                       test_eject_restores_the_base
    test_disable_adapter                      test_disabled_gives_the_scores_of_the_base
    test_passing_input_embeds_works           test_inputs_may_be_embeddings
    test_lora_conversion                      test_an_expanded_adapter_is_exact
    test_modules_to_save_correctly_set        test_the_head_is_trained
    test_forward_with_labels                  test_the_loss_of_labels_is_computed
    test_training…_layer_indexing             skipped by PEFT for VB-LoRA; here `test_injection`
    test_mixed_adapter_batches,
    test_generate_with_mixed_…                skipped by PEFT for VB-LoRA; here `AdapterPool`
    test_weighted_combination_of_adapters     skipped by PEFT for VB-LoRA; here
                                              `test_the_sum_of_two_adapters_is_merged`
    tests that are in test_custom_models.py   see `test_peft_counterparts`
tests/test_torch_compile.py
    test_causal_lm_training_trainer_compile   test_compiled_under_the_trainer
    test_causal_lm_training_pytorch_compile   test_compiled_in_a_loop
tests/regression
    test_regression.test_vblora_tuning        test_a_checkpoint_of_an_older_peft_is_read_correctly
    test_state_dict (vblora, vblora_topk)
      test_load_and_forward                   test_a_checkpoint_of_an_older_peft_is_read_correctly
      test_load_with_different_adapter_name   test_a_checkpoint_of_an_older_peft_with_another_name
      test_save_load_roundtrip                test_a_checkpoint_of_an_older_peft_is_saved_again
"""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.data.train_minilm import load_base
from tests.torch.models import llama, tokens
from tests.torch.peft_models import KINDS, base_of, config_of, first, ids_of, of_kind
from vbfmt import digest
from vbfmt.converters import lora
from vbfmt.converters import peft as peft_format
from vbfmt.errors import ModelError
from vbfmt.torch import (
    VBLoRALinear,
    adapters_of,
    disabled,
    eject,
    get_adapter_state_dict,
    inject,
    load_checkpoint,
    load_packed,
    merge,
    merge_and_unload,
    param_groups,
    save_checkpoint,
    save_packed,
    to_adapter,
)

MINILM = Path(__file__).parents[1] / "data" / "minilm-vblora"
DIGEST = "sha256:28952945da0b744a7e5070bdee97890a37f7facad6cb67e2dd7fb7929982f1b6"
GENERATE = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=["decoder", "encoder-decoder"])
def writer(request):
    """A kind of model that generates text."""
    return request.param


def output(model, kind):
    with torch.no_grad():
        return first(model, kind)


def scores(model, kind):
    given = {key: value for key, value in ids_of(kind).items() if key != "decoder_input_ids"}
    with torch.no_grad():
        result = model.generate(
            **given, **GENERATE, output_scores=True, return_dict_in_generate=True
        )
    return result.scores[0]


def gradients(model, kind):
    """Return the names of the parameters whose gradient is not zero."""
    model.zero_grad()
    (first(model, kind) ** 2).sum().backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def own(model):
    adapters = adapters_of(model)
    groups = adapters.parameters_of(adapters.active)
    return {id(parameter) for group in groups.values() for parameter in group}


def test_a_model_prepared_for_few_bits_is_trained(kind):
    model = peft.prepare_model_for_kbit_training(base_of(kind))
    inject(model, config_of(kind))
    model.enable_input_require_grads()
    ids = ids_of(kind)["input_ids"]
    assert model.get_input_embeddings()(ids).requires_grad
    first(model.train(), kind).sum().backward()
    assert {id(p) for p in model.parameters() if p.grad is not None} == own(model)
    plain = of_kind(kind)
    assert not plain.get_input_embeddings()(ids).requires_grad


def test_every_adapter_has_its_own_folder(kind, tmp_path):
    model = of_kind(kind)
    inject(model, config_of(kind), adapter_name="new_adapter")
    fresh = base_of(kind)
    for name in ("default", "new_adapter"):
        save_checkpoint(model, tmp_path / name, adapter_name=name)
        assert {path.name for path in (tmp_path / name).iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
        load_checkpoint(fresh, tmp_path / name, adapter_name=name)
        found, expected = (get_adapter_state_dict(each, name) for each in (fresh, model))
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert [*load_checkpoint(base_of(kind), tmp_path / "default").adapters] == ["default"]


def test_a_merged_model_is_saved_as_a_plain_model(kind, tmp_path):
    model = of_kind(kind)
    expected = output(model, kind)
    merge_and_unload(model)
    torch.testing.assert_close(output(model, kind), expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(output(loaded, kind), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(output(base_of(kind), kind), expected, atol=1e-5)


def test_one_of_two_adapters_is_merged(kind):
    model = of_kind(kind, modules_to_save=(), task_type=None)
    one = output(model, kind)
    torch.manual_seed(4)
    inject(model, config_of(kind, task_type=None), adapter_name="other")
    other = output(model, kind)
    assert not torch.allclose(one, other, atol=1e-5)
    merge(model, ["default"])
    torch.testing.assert_close(output(model, kind), one, rtol=1e-4, atol=1e-5)


def test_an_adapter_with_nan_is_not_merged(kind):
    for bad in (torch.nan, torch.inf):
        model = of_kind(kind)
        with torch.no_grad():
            adapters_of(model).adapter().bank.weight[0] = bad
        with pytest.raises(ModelError, match="the merged weight is not finite"):
            merge_and_unload(model)
        assert any(isinstance(module, VBLoRALinear) for module in model.modules())


def test_generate(writer):
    model = of_kind(writer)
    ids = ids_of(writer)["input_ids"]
    named = model.generate(input_ids=ids, **GENERATE)
    assert torch.equal(model.generate(ids, **GENERATE), named)


def test_generate_in_half_precision(writer):
    model = base_of(writer).bfloat16()
    inject(model, config_of(writer))
    assert scores(model, writer).isfinite().all()


def test_every_parameter_of_the_adapter_has_a_gradient(kind):
    model = of_kind(kind, vblora_dropout=0.05).train()
    first(model, kind).sum().backward()
    assert {id(p) for p in model.parameters() if p.grad is not None} == own(model)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_reach_all_parameters_with_checkpointing(kind, reentrant):
    model = of_kind(kind).train()
    plain = gradients(model, kind)
    assert plain
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert gradients(model, kind) == plain


def test_eject_restores_the_base(kind):
    base = base_of(kind)
    keys, expected = base.state_dict().keys(), output(base, kind)
    inject(base, config_of(kind))
    assert not torch.equal(output(base, kind), expected)
    eject(base)
    assert torch.equal(output(base, kind), expected)
    assert base.state_dict().keys() == keys
    assert not any(isinstance(module, VBLoRALinear) for module in base.modules())


def test_disabled_gives_the_scores_of_the_base(writer):
    model = base_of(writer)
    before = scores(model, writer)
    inject(model, config_of(writer))
    with_it = scores(model, writer)
    assert not torch.allclose(with_it, before)
    with disabled(model):
        torch.testing.assert_close(scores(model, writer), before)
    torch.testing.assert_close(scores(model, writer), with_it)


def test_inputs_may_be_embeddings(kind):
    model = of_kind(kind)
    given = ids_of(kind)
    expected = output(model, kind)
    given["inputs_embeds"] = model.get_input_embeddings()(given.pop("input_ids"))
    with torch.no_grad():
        torch.testing.assert_close(model(**given)[0], expected)


def test_an_expanded_adapter_is_exact(kind, tmp_path):
    model = of_kind(kind)
    expected = output(model, kind)
    lora.write(to_adapter(model), tmp_path / "lora")
    there = peft.PeftModel.from_pretrained(base_of(kind), str(tmp_path / "lora")).eval()
    torch.testing.assert_close(output(there, kind), expected, rtol=1e-4, atol=1e-5)


def test_the_head_is_trained():
    model = of_kind("classifier")
    assert adapters_of(model).adapter().stand_ins.names == ["classifier.weight", "classifier.bias"]


def test_the_loss_of_labels_is_computed():
    model, labels = of_kind("classifier"), torch.tensor([0, 2])
    with torch.no_grad():
        result = model(**ids_of("classifier"), labels=labels)
    expected = torch.nn.functional.cross_entropy(result.logits, labels)
    torch.testing.assert_close(result.loss, expected)


def trained_and_loaded(model, folder):
    """Return the logits of a trained model, and those of a new one into which its adapter is
    loaded."""
    save_checkpoint(model, folder)
    fresh = llama().eval()
    load_checkpoint(fresh, folder)
    with torch.no_grad():
        return model(tokens()).logits, fresh(tokens()).logits


def test_compiled_under_the_trainer(tmp_path):
    torch._dynamo.reset()
    model = llama()
    inject(model, config_of("decoder"))
    with torch.no_grad():
        before = model.eval()(tokens()).logits
    data = [{"input_ids": row, "labels": row} for row in tokens(rows=8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"), max_steps=5, per_device_train_batch_size=4,
        torch_compile=True, torch_compile_backend="aot_eager", use_cpu=True, report_to=[],
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        optimizers=(torch.optim.AdamW(param_groups(model)), None),
    )
    trainer.train()
    after, loaded = trained_and_loaded(model.eval(), tmp_path / "checkpoint")
    assert after.isfinite().all()
    assert not torch.allclose(after, before, atol=1e-4)
    torch.testing.assert_close(loaded, after, rtol=1e-4, atol=1e-4)


def test_compiled_in_a_loop(tmp_path):
    torch._dynamo.reset()
    model = llama()
    inject(model, config_of("decoder"))
    called = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.AdamW(param_groups(model))
    losses = []
    for _ in range(5):
        loss = called(input_ids=tokens(), labels=tokens()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after, loaded = trained_and_loaded(model.eval(), tmp_path / "checkpoint")
    torch.testing.assert_close(loaded, after, rtol=1e-4, atol=1e-4)


def logits_of(model):
    ids = torch.randint(1000, 2000, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(ids).logits


def test_a_checkpoint_of_an_older_peft_is_read_correctly(tmp_path):
    pytest.importorskip("peft", minversion="0.14")  # 0.13 does not read newer configs
    assert digest(peft_format.read(MINILM)) == DIGEST
    model, packed = load_base(), load_base()
    load_checkpoint(model, MINILM)
    load_packed(packed, peft_format.read(MINILM))
    theirs = peft.PeftModel.from_pretrained(load_base(), str(MINILM))
    torch.testing.assert_close(logits_of(model), logits_of(theirs), rtol=0, atol=2e-6)
    torch.testing.assert_close(logits_of(packed), logits_of(theirs), rtol=0, atol=2e-6)
    theirs.peft_config["default"].save_only_topk_weights = True
    theirs.save_pretrained(str(tmp_path))
    topk = load_base()
    load_packed(topk, peft_format.read(tmp_path))
    torch.testing.assert_close(logits_of(topk), logits_of(theirs), rtol=0, atol=2e-6)


def test_a_checkpoint_of_an_older_peft_with_another_name():
    model, other = load_base(), load_base()
    load_checkpoint(model, MINILM)
    load_checkpoint(other, MINILM, adapter_name="other")
    assert torch.equal(logits_of(model), logits_of(other))


def test_a_checkpoint_of_an_older_peft_is_saved_again(tmp_path):
    model = load_base()
    load_checkpoint(model, MINILM)
    save_checkpoint(model, tmp_path / "again")
    assert digest(peft_format.read(tmp_path / "again")) == digest(to_adapter(model))
    assert save_packed(model, tmp_path / "adapter.vblora") == digest(to_adapter(model))
