"""Which set-ups work: train, save, resume, pack, load, merge; ours, PEFT's VB-LoRA, PEFT's LoRA.

``python -m tests.matrix``: in each cell ``yes``, or the first words of the error. Set-ups that need
a package that is not installed are left out. Sharded set-ups: `tests/torch/test_sharding.py`;
trainers: `test_trainer.py`, `test_trl.py`, `test_quantized.py`.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import (
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    TorchAoConfig,
)

from tests.torch.models import llama, tokens
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

STEPS = ("train", "save", "resume", "pack", "load", "merge")
SIZES = {"num_vectors": 16, "vector_length": 8, "r": 2, "init_logits_std": 1.0}
STRONG = {"init_vector_bank_bound": 0.3, "target_modules": "all-linear"}
CLOSE = 0.05


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    print(f"| set-up | method | {' | '.join(STEPS)} |")
    print(f"|---|---|{'---|' * len(STEPS)}")
    for name, setup in setups().items():
        for method in (Ours, PeftVBLoRA, PeftLoRA):
            with tempfile.TemporaryDirectory() as folder:
                cells = list(_cells(method, setup, Path(folder)))
            print(f"| {name} | {method.__name__} | {' | '.join(cells)} |", flush=True)


@dataclass(frozen=True)
class Setup:
    """One way to make a base, and how it is called."""

    base: Callable[[Path], nn.Module]
    around: Callable[[nn.Module], nn.Module] = lambda model: model
    autocast: bool = False


def setups() -> dict[str, Setup]:
    """All that can be tried here."""
    quantized = {}
    if importlib.util.find_spec("bitsandbytes"):
        four, eight = BitsAndBytesConfig(load_in_4bit=True), BitsAndBytesConfig(load_in_8bit=True)
        quantized = {
            "bitsandbytes 4 bits": Setup(_stored(_llama, LlamaForCausalLM, four)),
            "bitsandbytes 8 bits": Setup(_stored(_llama, LlamaForCausalLM, eight)),
            "bitsandbytes 4 bits, GPT-2": Setup(_stored(_gpt2, GPT2LMHeadModel, four)),
        }
    if importlib.util.find_spec("torchao"):
        from torchao.quantization import Int8WeightOnlyConfig

        storage = TorchAoConfig(Int8WeightOnlyConfig())
        quantized["torchao int8"] = Setup(_stored(_llama, LlamaForCausalLM, storage))
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


class Ours:
    """vbfmt.torch."""

    def __init__(self, base: nn.Module, folder: Path) -> None:
        torch.manual_seed(1)
        self.model, self.folder = base, folder
        inject(base, VBLoRAConfig(**SIZES, **STRONG))

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
    """PEFT's VB-LoRA; it packs by saving the top-k weights only."""

    def __init__(self, base: nn.Module, folder: Path) -> None:
        torch.manual_seed(1)
        self.folder = folder
        self.model: Any = peft.get_peft_model(base, self.config())

    def config(self) -> peft.PeftConfig:
        return peft.VBLoRAConfig(**SIZES, **STRONG)

    def groups(self) -> Any:
        return [p for p in self.model.parameters() if p.requires_grad]

    def save(self) -> None:
        self.model.save_pretrained(self.folder / "checkpoint")

    def resume(self, base: nn.Module) -> nn.Module:
        source = self.folder / "checkpoint"
        model: nn.Module = peft.PeftModel.from_pretrained(base, source, is_trainable=True)
        return model

    def pack(self) -> None:
        self.model.peft_config["default"].save_only_topk_weights = True
        self.model.save_pretrained(self.folder / "packed")

    def load(self, base: nn.Module) -> nn.Module:
        model: nn.Module = peft.PeftModel.from_pretrained(base, self.folder / "packed")
        return model

    def merge(self) -> nn.Module:
        model: nn.Module = self.model.merge_and_unload()
        return model


class PeftLoRA(PeftVBLoRA):
    """PEFT's LoRA; there is nothing to pack, its checkpoint is what it is."""

    def config(self) -> peft.PeftConfig:
        return peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)

    def pack(self) -> None:
        self.model.save_pretrained(self.folder / "packed")


def _cells(method: type[Any], setup: Setup, folder: Path) -> Any:
    """The table's cells of one method in one set-up; after a failure the later ones go on."""
    ids, made = tokens(), None

    def outputs(model: nn.Module) -> Tensor:
        with torch.no_grad(), _autocast(setup):
            result: Tensor = model(input_ids=ids).logits.float()
        return result

    def train() -> None:
        nonlocal made
        made = method(setup.base(folder), folder)
        called = setup.around(made.model).train()
        optimizer, losses = torch.optim.AdamW(made.groups(), lr=1e-2), []
        for _ in range(8):
            with _autocast(setup):
                loss = called(input_ids=ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0], "the loss does not fall"

    def same(model: nn.Module) -> None:
        # PEFT evaluates its top-k form only; bitsandbytes repacks 4 bits in an evaluation.
        difference = (outputs(model.eval()) - outputs(made.model.train())).abs().max().item()
        assert difference < CLOSE, f"outputs differ by {difference:.2g}"

    def merged() -> None:
        before = outputs(made.model.train())
        difference = (outputs(made.merge()) - before).abs().max().item()
        assert difference < CLOSE, f"outputs differ by {difference:.2g}"

    works: dict[str, Callable[[], object]] = {
        "train": train,
        "save": lambda: made.save(),
        "resume": lambda: same(made.resume(setup.base(folder))),
        "pack": lambda: made.pack(),
        "load": lambda: same(made.load(setup.base(folder))),
        "merge": merged,
    }
    for step in STEPS:
        try:
            works[step]()
        except Exception as error:  # noqa: BLE001 - it is shown
            yield f"{type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}"
        else:
            yield "yes"


def _autocast(setup: Setup) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=setup.autocast)


if __name__ == "__main__":
    main()
