"""Small models of common kinds, with PEFT's VB-LoRA, trained for a few steps."""

from __future__ import annotations

import os

import peft
import pytest
import torch
import transformers
from peft import PeftModel, VBLoRAConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))
DTYPE = "dtype" if VERSION >= (4, 56) else "torch_dtype"
"""Name of the parameter of ``from_pretrained`` for the dtype."""

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 32}
BERT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "num_labels": 3,
}
ADAPTERS = {
    "llama": {"target_modules": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]},
    "gpt2": {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
    "bert": {
        "target_modules": ["query", "value"],
        "bias": "vblora_only",
        "modules_to_save": ["classifier"],
        "task_type": "SEQ_CLS",
    },
    "bert-all": {
        "target_modules": ["query", "value"],
        "bias": "all",
        "modules_to_save": ["classifier"],
        "task_type": "SEQ_CLS",
    },
}


SAVES_BIASES = tuple(map(int, peft.__version__.split(".")[:2])) >= (0, 21)


def require_biases_saved(bias: str | None) -> None:
    """Skip the test if this version of PEFT trains biases but does not save them."""
    if bias not in (None, "none") and not SAVES_BIASES:
        pytest.skip(f"PEFT {peft.__version__} does not save VB-LoRA's biases (0.21 does)")


def base(kind: str, folder: str) -> PreTrainedModel:
    """Return the base model of a kind from the folder; create it if it is missing."""
    classes = {
        "llama": (LlamaForCausalLM, LlamaConfig, LLAMA),
        "gpt2": (GPT2LMHeadModel, GPT2Config, GPT2),
        "bert": (BertForSequenceClassification, BertConfig, BERT),
    }
    model_class, config_class, sizes = classes[kind.partition("-")[0]]
    path = os.path.join(folder, "base")
    if not os.path.isdir(path):
        torch.manual_seed(0)
        model_class(config_class(**sizes)).save_pretrained(path)
    return model_class.from_pretrained(path).eval()


def trained(kind: str, folder: str, *, topk: int = 2, num_vectors: int = 20) -> PeftModel:
    """Return PEFT's model after a few steps that change every trainable parameter."""
    model = base(kind, folder)
    torch.manual_seed(1)
    config = VBLoRAConfig(
        r=3, num_vectors=num_vectors, vector_length=8, topk=topk, **ADAPTERS[kind]
    )
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "vector_bank" in name:
            parameter.data.uniform_(-0.5, 0.5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        outputs(model).square().mean().backward()
        optimizer.step()
    return model.eval()


def outputs(model: torch.nn.Module) -> torch.Tensor:
    """Return the model's logits for fixed inputs."""
    ids = torch.arange(24).reshape(2, 12) % 64
    return model(input_ids=ids).logits


def saved(model: PeftModel, folder: str, *, only_topk: bool = False) -> str:
    """Save PEFT's checkpoint of the model. Skip the test if PEFT would leave trained biases out."""
    if model.peft_config["default"].bias != "none":
        pytest.importorskip("peft", minversion="0.21")
    path = os.path.join(folder, "topk" if only_topk else "logits")
    model.peft_config["default"].save_only_topk_weights = only_topk
    model.save_pretrained(path)
    model.peft_config["default"].save_only_topk_weights = False
    return path


def loaded(kind: str, folder: str, adapter: str) -> PeftModel:
    """Return the base with an adapter folder, loaded by PEFT."""
    return PeftModel.from_pretrained(base(kind, folder), adapter).eval()
