"""Training runs: each in a separate process, with its result saved as one JSON line."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tests.data import train_minilm as task
from tests.examples.fleet import training
from tests.examples.fleet.methods import FILMS, JOINT, METHODS, OWN, SEED
from tests.examples.fleet.texts import KINDS
from tests.examples.fleet.upper_half import prepared_split
from vbfmt.torch import VectorBank, set_adapter

BANK_SEED = 7


@dataclass(frozen=True)
class Job:
    """One training run to be done.

    Attributes:
        method: one of `METHODS`.
        kinds: the kind of sentences, or all kinds if their adapters are trained together.
        seed: of the initialization, of dropout and of the order of the sentences.
        part: what to score on, ``test`` or ``validation``.
        folder: where the source archive, the results and banks are.
    """

    method: str
    kinds: tuple[str, ...]
    seed: int
    part: str
    folder: Path

    @property
    def sdist(self) -> Path:
        """Return the path of the source archive with the sentences."""
        return next(self.folder.glob("vaderSentiment-*"))

    def key(self, kind: str) -> dict[str, Any]:
        """Return what identifies a result. If a setting changes, the result is computed again."""
        settings = METHODS[self.method].settings
        matter = asdict(settings)
        if settings.method != "vblora":
            matter = {name: matter[name] for name in ("method", "rank", "lr", "epochs")}
        own = {"method": self.method, "kind": kind, "seed": self.seed, "part": self.part}
        return {**own, "settings": matter}

    def result_in(self, results: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
        """Return the latest result of this run for a kind of sentences, if any."""
        key = self.key(kind)
        settings = key.pop("settings")
        found = [
            each
            for each in results
            if key.items() <= each.items() and settings.items() <= each["settings"].items()
        ]
        return found[-1] if found else None


def jobs_of(methods: list[str], seeds: int, part: str, folder: Path) -> Iterator[Job]:
    """Yield every run, seed by seed."""
    for seed in range(seeds):
        for method in methods:
            bank = METHODS[method].bank
            if bank == JOINT:
                yield Job(method, KINDS, seed, part, folder)
                continue
            for kind in KINDS:
                if bank != FILMS or kind != "films":
                    yield Job(method, (kind,), seed, part, folder)


def results_in(folder: Path) -> list[dict[str, Any]]:
    """Return the results that are already computed."""
    path = folder / "results.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def is_done(job: Job, results: list[dict[str, Any]]) -> bool:
    """Return whether all results of a run exist."""
    return all(job.result_in(results, kind) for kind in job.kinds)


def done(job: Job) -> list[dict[str, Any]]:
    """Train and score; return one result for each kind."""
    started = time.process_time()
    task.make_deterministic()
    method = METHODS[job.method]
    parts = {kind: prepared_split(kind, job.sdist, job.folder) for kind in job.kinds}
    if method.bank is None:
        model, groups = training.with_lora(method.settings, job.seed)
    else:
        model, groups = training.with_vblora(method.settings, job.seed, _bank_of(job), job.kinds)
    examples = {kind: split.train for kind, split in parts.items()}
    training.train(model, groups, examples, method.settings.epochs, job.seed)
    _keep_bank(model, job)
    results = []
    for kind, split in parts.items():
        if method.bank is not None:
            set_adapter(model, kind)
        scored = training.scored(model, getattr(split, job.part))
        size = training.bytes_of(model, method.settings)
        results.append({**job.key(kind), **scored, "bytes": size})
    seconds = time.process_time() - started
    return [{**each, "seconds": round(seconds / len(results), 1)} for each in results]


def _bank_of(job: Job) -> VectorBank | None:
    """Return the bank that a run starts from, or None for a new one."""
    method = METHODS[job.method]
    settings = method.settings
    if method.bank == SEED:
        bank = VectorBank.from_seed(BANK_SEED, settings.h, settings.b, bound=settings.bound)
    elif method.bank == FILMS:
        bank = VectorBank(settings.h, settings.b)
        bank.weight.data.copy_(torch.load(_bank_file(job), weights_only=True))
        bank.weight.data[0] = 0
        bank.freeze()
    elif method.bank == JOINT:
        bank = VectorBank.from_seed(BANK_SEED, settings.h, settings.b, bound=settings.bound)
        bank.frozen = False
    else:
        return None
    bank.train_unselected = settings.train_unselected
    bank.starts_small = settings.starts_small
    return bank


def _bank_file(job: Job) -> Path:
    return job.folder / f"bank-of-films-{job.seed}.pt"


def _keep_bank(model: torch.nn.Module, job: Job) -> None:
    """Save the bank that was trained on film reviews, for runs on other kinds of sentences."""
    if METHODS[job.method].bank == OWN and job.kinds == ("films",):
        bank = training.bank_of(model)
        torch.save(bank.weight.detach().clone(), _bank_file(job))
