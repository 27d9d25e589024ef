"""Random adapters, models for them, and the same adapters as LoRA in PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import peft
import torch
from torch import nn

from tests.bench.serving.setting import VOCABULARY, Setting
from tests.bench.shapes import LLAMA_CONFIG, TINYLLAMA
from vbfmt import Adapter, Module, Rows

RANK = 4
H = 256
LENGTH = 256


def modules_of(shapes: dict[str, tuple[int, int]], layers: int) -> list[Module]:
    return [
        Module(f"model.layers.{layer}.{name}", i, o, RANK)
        for layer in range(layers)
        for name, (i, o) in shapes.items()
    ]


def random_adapters(modules: Sequence[Module], count: int) -> dict[str, Adapter]:
    """Return random adapters of these modules with one bank, by number."""
    generator = np.random.default_rng(0)
    bank = generator.uniform(-0.02, 0.02, (H, LENGTH)).astype("<f4")
    total = sum(module.rows(LENGTH) for module in modules)

    def values() -> tuple[np.ndarray, np.ndarray]:
        first = generator.integers(0, H // 2, (total, 1))
        indices = np.concatenate([first, first + H // 2], axis=1).astype("u1")
        return indices, generator.uniform(0.01, 0.5, (total, 1)).astype("<f4")

    indices, weights = values()
    by_module, start = {}, 0
    for module in modules:
        here = slice(start, start + module.rows(LENGTH))
        by_module[module] = Rows(indices[here], weights[here])
        start = here.stop
    first = Adapter.from_rows(bank, by_module)
    others = (replace(first, indices=i, weights=w) for i, w in (values() for _ in range(count - 1)))
    return {str(place): adapter for place, adapter in enumerate([first, *others])}


def base_of(setting: Setting) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = LLAMA_CONFIG | {"num_hidden_layers": setting.layers, "vocab_size": VOCABULARY}
    with torch.inference_mode(False), torch.device(setting.device):
        model = LlamaForCausalLM(LlamaConfig(**sizes)).to(setting.dtype)
    return model.eval().requires_grad_(False)


def sharing(base: nn.Module) -> nn.Module:
    """Return another model with the same tensors. Hooks and layers that are added to one do not
    affect the other."""
    with torch.inference_mode(False), torch.device("meta"):
        model = type(base)(base.config)
    model.load_state_dict(base.state_dict(), assign=True)
    for name, buffer in base.named_buffers():  # includes those not in a state dict
        path, _, leaf = name.rpartition(".")
        model.get_submodule(path)._buffers[leaf] = buffer
    return model.eval().requires_grad_(False)


def empty_of(modules: Sequence[Module]) -> nn.Module:
    """Return a model whose layers have no values, to measure a pool without running the model."""
    root = nn.Module()
    for module in modules:
        at = root
        *path, leaf = module.name.split(".")
        for part in path:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        weight = torch.zeros(1).expand(module.out_features, module.in_features)
        layer = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        at.add_module(leaf, layer)
    return root


def lora_of(base: nn.Module, adapters: Mapping[str, Adapter]) -> peft.PeftModel:
    """Return a PEFT model with the same adapters, expanded to LoRA."""
    config = peft.LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=[name.rpartition(".")[2] for name in TINYLLAMA]
    )
    with torch.inference_mode(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, config, adapter_name="0")
        for name in [*adapters][1:]:
            model.add_adapter(name, config)
    for name, adapter in adapters.items():
        for module, a, b in adapter.iter_factors():
            layer = model.base_model.model.get_submodule(module.name)
            layer.lora_A[name].weight.copy_(torch.from_numpy(a))
            layer.lora_B[name].weight.copy_(torch.from_numpy(b))
    return model.eval()
