"""Training on quantized bases, packing, and loading onto other bases.

Needs bitsandbytes or torchao, which the tests do not install.
"""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TorchAoConfig,
)

from tests.converters.models import DTYPE
from tests.torch.models import config, llama, net, tokens
from tests.torch.test_trainer import assert_same_adapter, data
from vbfmt.errors import ModelError
from vbfmt.torch import (
    adapters_of,
    inject,
    load_packed,
    merge,
    param_groups,
    save_packed,
    to_adapter,
    unmerge,
)


def large_llama():
    """Return a Llama that is large enough for bitsandbytes' CPU kernels."""
    return llama(hidden_size=128, intermediate_size=256)


def large_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_embd=128, n_layer=2, n_head=2, vocab_size=50, n_positions=16)
    )


BASES = {"llama": (large_llama, LlamaForCausalLM), "gpt2": (large_gpt2, GPT2LMHeadModel)}


def bitsandbytes(**settings):
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(**settings)


def torchao(name):
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(getattr(quantization, name)())


STORAGES = {
    "NF4, twice": lambda: bitsandbytes(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
    "FP4": lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": lambda: bitsandbytes(load_in_8bit=True),
    "torchao int8": lambda: torchao("Int8WeightOnlyConfig"),
    "torchao float8": lambda: torchao("Float8WeightOnlyConfig"),
}


def quantized(folder, base, storage):
    make, kind = BASES[base]
    if not folder.exists():
        make().save_pretrained(folder)
    settings = {"quantization_config": STORAGES[storage](), "device_map": "cpu"}
    return kind.from_pretrained(folder, **{DTYPE: torch.float32}, **settings)


def injected(model):
    torch.manual_seed(5)
    inject(model, config(target_modules="all-linear"))
    return model


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("base", BASES)
def test_an_adapter_trained_on_a_quantized_base_loads_onto_any_base(tmp_path, base, storage):
    model = injected(quantized(tmp_path / "base", base, storage))
    optimizer, losses = torch.optim.AdamW(param_groups(model)), []
    for _ in range(10):
        loss = model(input_ids=tokens(), labels=tokens()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    save_packed(model, tmp_path / "adapter.vblora")
    same = quantized(tmp_path / "base", base, storage)
    load_packed(same, tmp_path / "adapter.vblora")
    found, expected = (each.eval()(tokens()).logits for each in (same, model))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    full = BASES[base][0]()
    load_packed(full, tmp_path / "adapter.vblora")
    assert {m.fan_in_fan_out for m in to_adapter(model)} == {base == "gpt2"}
    for name, layer in adapters_of(full).all_layers().items():
        for mine, theirs in zip(
            layer.updates["default"].factors(),
            adapters_of(same).all_layers()[name].updates["default"].factors(),
            strict=True,
        ):
            assert torch.equal(mine, theirs)


def test_a_quantized_base_is_merged_after_dequantizing_it(tmp_path):
    model = injected(quantized(tmp_path / "base", "llama", "NF4, twice")).train()
    expected = model(tokens()).logits  # in training mode; after evaluation it differed
    with pytest.raises(ModelError, match=r"Params4bit, torch.uint8 .*model\.dequantize\(\)"):
        merge(model)
    assert torch.equal(model(tokens()).logits, expected)
    model.dequantize()
    merge(model)
    torch.testing.assert_close(model(tokens()).logits, expected, rtol=1e-4, atol=1e-4)
    unmerge(model)


def test_torchaos_tensors_are_not_merged(tmp_path):
    model = injected(quantized(tmp_path / "base", "llama", "torchao int8"))
    with pytest.raises(ModelError, match=r"cannot be merged into: .*Int8Tensor.*full precision"):
        merge(model)


def trainer(folder, base):
    model = injected(quantized(base, "llama", "NF4, twice"))
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder), max_steps=4, save_steps=2, per_device_train_batch_size=2,
        report_to=[], lr_scheduler_type="cosine", use_cpu=True, disable_tqdm=True,
        gradient_checkpointing=True,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(param_groups(model))
    return Seq2SeqTrainer(
        model=model, args=arguments, train_dataset=data(), optimizers=(optimizer, None)
    )


def test_seq2seq_trainer_trains_saves_and_resumes_bit_for_bit(tmp_path):
    whole = trainer(tmp_path / "one", tmp_path / "base")
    whole.train()
    resumed = trainer(tmp_path / "two", tmp_path / "base")
    resumed.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-2"))
    assert_same_adapter(resumed.model, whole.model)
    assert (tmp_path / "one" / "checkpoint-4" / "model.safetensors").stat().st_size < 300_000


def layer_of_hqq():
    quantize = pytest.importorskip("hqq.core.quantize")
    settings = quantize.BaseQuantizeConfig(nbits=4, group_size=32)
    layer = torch.nn.Linear(32, 32)
    return quantize.HQQLinear(layer, settings, compute_dtype=torch.float32, device="cpu")


def layer_of_awq():
    layers = pytest.importorskip("awq.modules.linear")
    return layers.WQLinear_GEMM(4, 32, 32, 32, bias=False, dev="cpu")


@pytest.mark.parametrize("made", [layer_of_hqq, layer_of_awq])
def test_layers_of_their_own_packages_are_refused_by_name(made):
    model = net()
    model.encoder[1] = made()
    with pytest.raises(ModelError, match=rf"encoder\.1: found {type(model.encoder[1]).__name__}"):
        inject(model, config())
