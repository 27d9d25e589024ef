"""The compared methods, with one interface: vbfmt, PEFT's VB-LoRA and PEFT's LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from vbfmt.torch import (
    VBLoRAConfig,
    get_adapter_state_dict,
    inject,
    load_checkpoint,
    load_packed,
    merge,
    param_groups,
    save_checkpoint,
    save_packed,
)

SIZES = {"num_vectors": 16, "vector_length": 8, "r": 2, "init_logits_std": 1.0}
STRONG = {"init_vector_bank_bound": 0.3}


class Ours:
    """vbfmt.torch."""

    def __init__(self, base: nn.Module, folder: Path, targets: Any = "all-linear") -> None:
        torch.manual_seed(1)
        self.model, self.folder = base, folder
        inject(base, VBLoRAConfig(**SIZES, **STRONG, target_modules=targets))

    def groups(self) -> Any:
        return param_groups(self.model)

    def save(self) -> None:
        save_checkpoint(self.model, self.folder / "checkpoint")

    def resume(self, base: nn.Module) -> nn.Module:
        load_checkpoint(base, self.folder / "checkpoint")
        own, other = get_adapter_state_dict(self.model), get_adapter_state_dict(base)
        assert all(torch.equal(own[key], other[key]) for key in own), "other values"
        return base

    def pack(self) -> None:
        save_packed(self.model, self.folder / "adapter.vblora")

    def load(self, base: nn.Module) -> nn.Module:
        load_packed(base, self.folder / "adapter.vblora")
        return base

    def merge(self) -> nn.Module:
        merge(self.model)
        return self.model


class PeftVBLoRA:
    """PEFT's VB-LoRA. To pack is to save only the top-k weights."""

    def __init__(self, base: nn.Module, folder: Path, targets: Any = "all-linear") -> None:
        torch.manual_seed(1)
        self.folder = folder
        self.model: Any = peft.get_peft_model(base, self.config(targets))

    def config(self, targets: Any) -> peft.PeftConfig:
        return peft.VBLoRAConfig(**SIZES, **STRONG, target_modules=targets)

    def groups(self) -> Any:
        return [p for p in self.model.parameters() if p.requires_grad]

    def save(self, **settings: Any) -> None:
        self.model.save_pretrained(self.folder / "checkpoint", **settings)

    def resume(self, base: nn.Module) -> nn.Module:
        source = self.folder / "checkpoint"
        model: nn.Module = peft.PeftModel.from_pretrained(base, source, is_trainable=True)
        return model

    def pack(self, **settings: Any) -> None:
        self.model.peft_config["default"].save_only_topk_weights = True
        self.model.save_pretrained(self.folder / "packed", **settings)

    def load(self, base: nn.Module) -> nn.Module:
        model: nn.Module = peft.PeftModel.from_pretrained(base, self.folder / "packed")
        return model

    def merge(self) -> nn.Module:
        model: nn.Module = self.model.merge_and_unload()
        return model


class PeftLoRA(PeftVBLoRA):
    """PEFT's LoRA. Packing saves an ordinary checkpoint."""

    def config(self, targets: Any) -> peft.PeftConfig:
        return peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)

    def pack(self, **settings: Any) -> None:
        self.model.save_pretrained(self.folder / "packed", **settings)


METHODS = (Ours, PeftVBLoRA, PeftLoRA)
