"""Small models, and the same adapter in PEFT and in vbfmt."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

from vbfmt.torch import VBLoRAConfig, load_checkpoint

SIZES = {"r": 3, "num_vectors": 16, "vector_length": 8, "topk": 2}
# An adapter with a visible effect; with PEFT's initialization, its effect is as small as rounding.
STRONG = {"init_vector_bank_bound": 0.5, "init_logits_std": 1.0}
PEFT_STRONG = {"init_vector_bank_bound": 0.5, "init_logits_std": 1.0}
NET_TARGETS = ["encoder.0", "encoder.1", "out"]
GPT2_TARGETS = ["c_attn", "c_proj", "c_fc"]


class Net(nn.Module):
    """Three linear layers with different shapes and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([nn.Linear(16, 32), nn.Linear(32, 32)])
        self.out = nn.Linear(32, 8, bias=False)
        self.classifier = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.encoder:
            x = torch.tanh(layer(x))
        return self.classifier(torch.tanh(self.out(x)))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def gpt2(seed: int = 0) -> nn.Module:
    """Return transformers' GPT-2, whose layers are Conv1D."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=16,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def llama(seed: int = 0, **settings: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 32,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **settings}))


def config(**settings: Any) -> VBLoRAConfig:
    return VBLoRAConfig(**{**SIZES, **STRONG, "target_modules": NET_TARGETS, **settings})


def peft_model(base: nn.Module, targets: list[str], **settings: Any) -> peft.PeftModel:
    sizes = {"r": 3, "num_vectors": 16, "vector_length": 8, "topk": 2, "target_modules": targets}
    sizes |= PEFT_STRONG
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(base, peft.VBLoRAConfig(**{**sizes, **settings}))


def same_as(model: peft.PeftModel, base: nn.Module, folder: Path) -> nn.Module:
    """Return `base` with PEFT's adapter, loaded from PEFT's checkpoint."""
    model.save_pretrained(str(folder))
    load_checkpoint(base, folder)
    return base


def batch(seed: int = 1, rows: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 16, generator=generator), torch.randint(
        0, 2, (rows,), generator=generator
    )


def losses(
    called: Callable[..., Tensor], optimizer: torch.optim.Optimizer, steps: Iterable[int]
) -> list[float]:
    """Train a `Net` on one batch a step, and return the losses."""
    found = []
    for step in steps:
        x, y = batch(step)
        loss = nn.functional.cross_entropy(called(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def tokens(seed: int = 1, rows: int = 3) -> Tensor:
    return torch.randint(0, 50, (rows, 10), generator=torch.Generator().manual_seed(seed))
