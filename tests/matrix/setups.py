"""Setups of one process: bases with several kinds of storage, and wrappers of models."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    TorchAoConfig,
)

from tests.torch.models import llama


@dataclass(frozen=True)
class Setup:
    """A way to make a base, a wrapper around the model, and settings."""

    base: Callable[[Path], nn.Module]
    around: Callable[[nn.Module], nn.Module] = lambda model: model
    autocast: bool = False
    targets: Any = "all-linear"


def setups() -> dict[str, Setup]:
    """Return the setups whose packages are installed, by name."""
    quantized = {}
    if importlib.util.find_spec("bitsandbytes"):
        four, eight = BitsAndBytesConfig(load_in_4bit=True), BitsAndBytesConfig(load_in_8bit=True)
        quantized = {
            "bitsandbytes 4 bits": Setup(_stored(_llama, LlamaForCausalLM, four)),
            "bitsandbytes 8 bits": Setup(_stored(_llama, LlamaForCausalLM, eight)),
            "bitsandbytes 4 bits, GPT-2": Setup(_stored(_gpt2, GPT2LMHeadModel, four)),
        }
    if importlib.util.find_spec("torchao"):
        for name in ("Int8WeightOnlyConfig", "Float8WeightOnlyConfig", "Int4WeightOnlyConfig"):
            storage = TorchAoConfig(getattr(quantization(), name)())
            what = name.removesuffix("WeightOnlyConfig").lower()
            quantized[f"torchao {what}"] = Setup(_stored(_llama, LlamaForCausalLM, storage))
    if importlib.util.find_spec("hqq"):
        # Targets are named, because "all-linear" finds none, in vbfmt and in PEFT.
        quantized["HQQ 4 bits"] = Setup(lambda _: _of_hqq(_llama()), targets=["q_proj", "v_proj"])
    return {
        "float32": Setup(lambda _: _llama()),
        "bfloat16": Setup(lambda _: _llama().bfloat16()),
        "float32, autocast": Setup(lambda _: _llama(), autocast=True),
        "GPT-2 (Conv1D)": Setup(lambda _: _gpt2()),
        "checkpointing, reentrant": Setup(lambda _: _llama(), _checkpointing(True)),
        "checkpointing, not reentrant": Setup(lambda _: _llama(), _checkpointing(False)),
        "torch.compile": Setup(
            lambda _: _llama(), lambda model: torch.compile(model, backend="aot_eager")
        ),
        **quantized,
    }


def quantization() -> Any:
    """Return torchao's configs."""
    return importlib.import_module("torchao.quantization")


def _of_hqq(model: Any) -> nn.Module:
    """Return a model with hqq's own layers, which transformers 5 does not load."""
    hqq = importlib.import_module("hqq.core.quantize")
    settings = {"compute_dtype": torch.float32, "device": "cpu"}
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, layer in list(part.named_children()):
                if isinstance(layer, nn.Linear):
                    bits = hqq.BaseQuantizeConfig(nbits=4, group_size=64)
                    setattr(part, name, hqq.HQQLinear(layer, bits, **settings))
    whole: nn.Module = model
    return whole


def _llama() -> nn.Module:
    return llama(hidden_size=128, intermediate_size=256)


def _gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"n_embd": 128, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **sizes))


def _stored(make: Callable[[], Any], kind: Any, storage: Any) -> Callable[[Path], nn.Module]:
    def base(folder: Path) -> nn.Module:
        if not (folder / "base").exists():
            make().save_pretrained(folder / "base")
        model: nn.Module = kind.from_pretrained(
            folder / "base", quantization_config=storage, device_map="cpu", dtype=torch.float32
        )
        return model

    return base


def _checkpointing(reentrant: bool) -> Callable[[nn.Module], nn.Module]:
    def around(model: nn.Module) -> nn.Module:
        inner: Any = model
        inner.gradient_checkpointing_enable({"use_reentrant": reentrant})
        inner.enable_input_require_grads()
        return model

    return around
