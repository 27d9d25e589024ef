"""Train the adapters of a fleet: each by itself, or several together on one bank."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch.nn.functional import cross_entropy
from transformers import get_linear_schedule_with_warmup

from tests.data import train_minilm as task
from tests.data.train_minilm import Example
from tests.examples.fleet.upper_half import collate, load_upper_half
from vbfmt.torch import (
    VBLoRAConfig,
    VectorBank,
    adapters_of,
    inject,
    param_groups,
    set_adapter,
    to_adapter,
)

TARGETS = ["query", "key", "value", "dense"]
HEAD_LR = 2e-3
WARMUP = 0.06
BATCH = 16

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """How an adapter is made and trained.

    Attributes:
        method: ``"lora"``, ``"head"`` (nothing but the head) or ``"vblora"``.
        rank, h, b, k: sizes.
        bound: the bank starts as U(−bound, bound).
        std: the logits start as N(0, std²).
        lr: of LoRA's factors or of the logits.
        lr_bank: of the bank; 0 for a frozen one.
        train_unselected: whether logits that are not selected have a gradient.
        starts_small: whether the bank has a zero vector, with which B starts.
        epochs: passes over the sentences.
    """

    method: str = "vblora"
    rank: int = 4
    h: int = 1024
    b: int = 128
    k: int = 4
    bound: float = 0.2
    std: float = 0.1
    lr: float = 4e-2
    lr_bank: float = 0.0
    train_unselected: bool = True
    starts_small: bool = True
    epochs: int = 3


def config_of(settings: Settings) -> VBLoRAConfig:
    """Return the library's configuration of an adapter."""
    return VBLoRAConfig(
        r=settings.rank,
        num_vectors=settings.h,
        vector_length=settings.b,
        topk=settings.k,
        target_modules=TARGETS,
        modules_to_save=["classifier"],
        init_vector_bank_bound=settings.bound,
        init_logits_std=settings.std,
        task_type="SEQ_CLS",
        base_model_name_or_path=task.BASE_NAME,
    )


def with_lora(settings: Settings, seed: int) -> tuple[torch.nn.Module, Groups]:
    """Return the base with PEFT's LoRA, or with a new head only, and what to train."""
    base = load_upper_half()
    torch.manual_seed(seed)
    model: torch.nn.Module
    if settings.method == "head":
        model = base.requires_grad_(False)
        base.classifier.requires_grad_(True)
    else:
        model = peft.get_peft_model(
            base,
            peft.LoraConfig(
                task_type=peft.TaskType.SEQ_CLS,
                r=settings.rank,
                lora_alpha=settings.rank,
                target_modules=TARGETS,
                modules_to_save=["classifier"],
            ),
        )
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    head = [p for name, p in trained if "classifier" in name]
    factors = [p for name, p in trained if "classifier" not in name]
    groups = [{"params": factors, "lr": settings.lr}, {"params": head, "lr": HEAD_LR}]
    return model, [group for group in groups if group["params"]]


def with_vblora(
    settings: Settings, seed: int, bank: VectorBank | None, names: Sequence[str] = ("default",)
) -> tuple[torch.nn.Module, Groups]:
    """Return the base with adapters on one bank, and what to train.

    Args:
        bank: the bank; without one, a fresh one.
        names: of the adapters.
    """
    model = load_upper_half()
    torch.manual_seed(seed)
    for name in names:
        bank = inject(model, config_of(settings), adapter_name=name, bank=bank).adapter(name).bank
    rates = {"lr_bank": settings.lr_bank, "lr_logits": settings.lr, "lr_rest": HEAD_LR}
    return model, param_groups(model, **rates, adapter_names=names)


def train(
    model: torch.nn.Module,
    groups: Groups,
    examples: Mapping[str, Sequence[Example]],
    epochs: int,
    seed: int,
) -> None:
    """Train with AdamW and a linear schedule, one adapter at a time, batch by batch.

    Args:
        examples: adapter name → sentences; with one name only, no adapter is switched.
    """
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    batches = list(_batches(examples, epochs, random.Random(seed)))
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * len(batches)), len(batches))
    model.train()
    for name, batch in batches:
        if len(examples) > 1:
            set_adapter(model, name)
        inputs, labels = collate(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = cross_entropy(model(**inputs).logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _batches(
    examples: Mapping[str, Sequence[Example]], epochs: int, order: random.Random
) -> Iterator[tuple[str, list[Example]]]:
    """Yield the batches of all adapters in random order, epoch by epoch."""
    for _ in range(epochs):
        epoch = [
            (name, batch)
            for name, sentences in examples.items()
            for batch in task.shuffled(list(sentences), order.getrandbits(32))
        ]
        if len(examples) > 1:
            order.shuffle(epoch)
        yield from epoch


@torch.inference_mode()
def scored(model: torch.nn.Module, examples: Sequence[Example]) -> dict[str, float]:
    """Return balanced accuracy and mean loss of a model on sentences."""
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [
            model(**collate(batch)[0]).logits.float() for batch in task.in_order(list(examples))
        ]
    logits = torch.cat(outputs)
    labels = torch.tensor([example.label for example in examples])
    right = logits.argmax(-1) == labels
    shares = [right[labels == label].float().mean().item() for label in (0, 1)]
    return {"score": sum(shares) / 2, "loss": cross_entropy(logits, labels).item()}


def bytes_of(model: torch.nn.Module, settings: Settings) -> int:
    """Return what a user's adapter takes without head and bank: LoRA's factors, VB-LoRA's rows."""
    if settings.method == "vblora":
        adapter = to_adapter(model)
        return adapter.indices.nbytes + adapter.weights.nbytes
    factors = [p for name, p in model.named_parameters() if "lora_" in name]
    return sum(p.numel() * p.element_size() for p in factors)


def bank_of(model: torch.nn.Module) -> VectorBank:
    """Return the bank of the active adapter."""
    bank = adapters_of(model).adapter().bank
    assert bank is not None
    return bank
