"""Setups with two processes, each compared with one process that trains on whole batches."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.matrix.methods import Ours
from tests.torch.models import llama, tokens
from tests.torch.processes import run_in_two_processes

SAME = 1e-6
STEPS = 4
RATE = 1e-2


class Parallel:
    """Training in two processes with DistributedDataParallel.

    Attributes:
        all_save: whether both processes must call `save`, because parameters are sharded.
    """

    all_save = False

    def __init__(self, made: Any) -> None:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        self.made = made
        self.called = self.wrap(made.model)
        self.optimizer: Any = torch.optim.AdamW(made.groups(), lr=RATE)

    def wrap(self, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model)

    def step(self, ids: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        self.called(input_ids=ids, labels=ids).loss.backward()
        self.optimizer.step()

    def whole(self) -> AbstractContextManager[Any]:
        """Return a context manager within which parameters are not partitioned."""
        return nullcontext()

    def trained(self) -> dict[str, torch.Tensor]:
        """Return copies of the trained parameters, gathered from all processes."""
        parameters = self.made.model.named_parameters()
        return {n: _whole(p).detach().clone() for n, p in parameters if p.requires_grad}

    def save(self, write: Callable[..., None], rank: int) -> None:
        """Save in the way that the method's documentation describes."""
        if rank == 0:
            write()


class FullyShard(Parallel):
    """FSDP2, applied layer by layer to a model that already has the adapter."""

    all_save = True

    def wrap(self, model: nn.Module) -> nn.Module:
        for layer in [m for m in model.modules() if type(m).__name__ == "LlamaDecoderLayer"]:
            fully_shard(layer)
        return fully_shard(model)

    def save(self, write: Callable[..., None], rank: int) -> None:
        if isinstance(self.made, Ours):
            write()
            return
        options = StateDictOptions(full_state_dict=True)
        state = get_model_state_dict(self.made.model, options=options)
        if rank == 0:
            write(state_dict=state)


class DeepSpeed(Parallel):
    """DeepSpeed's ZeRO."""

    def __init__(self, made: Any, stage: int) -> None:
        deepspeed = importlib.import_module("deepspeed")
        deepspeed.init_distributed("gloo", verbose=False)
        self.made, self.stage, self.all_save = made, stage, stage == 3
        settings = {
            "train_micro_batch_size_per_gpu": 2,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        optimizer = torch.optim.AdamW(made.groups(), lr=RATE)
        self.called = deepspeed.initialize(model=made.model, optimizer=optimizer, config=settings)[
            0
        ]
        self.gathered = deepspeed.zero.GatheredParameters

    def step(self, ids: torch.Tensor) -> None:
        self.called.backward(self.called(input_ids=ids, labels=ids).loss)
        self.called.step()

    def whole(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.gathered(
            list(self.made.model.parameters()), enabled=self.stage == 3
        )
        return context

    def save(self, write: Callable[..., None], rank: int) -> None:
        if isinstance(self.made, Ours) and self.stage == 3:
            write()
            return
        with self.whole():
            if rank == 0:
                write()


def setups() -> dict[str, Callable[[Any], Parallel]]:
    """Return the setups whose packages are installed, by name."""
    found: dict[str, Callable[[Any], Parallel]] = {
        "DistributedDataParallel": Parallel,
        "fully_shard (FSDP2)": FullyShard,
    }
    if importlib.util.find_spec("deepspeed"):
        for stage in (1, 2, 3):
            found[f"DeepSpeed ZeRO-{stage}"] = partial(DeepSpeed, stage=stage)
    return found


def cells(name: str, method: type[Any], folder: Path) -> dict[str, str]:
    """Run a method in two processes, compare with one process, and return the cell of each step."""
    work = partial(_work, name=name, method=method)
    run_in_two_processes({"work": work}, folder)
    here = folder / "work"
    if not (here / "cells.json").exists():
        lines = (here / "error0").read_text().splitlines() if (here / "error0").exists() else []
        return dict.fromkeys(("train", "save", "resume", "pack", "load", "merge"), str(lines[-1:]))
    found: dict[str, str] = json.loads((here / "cells.json").read_text())
    alone = method(llama(), here)
    optimizer = torch.optim.AdamW(alone.groups(), lr=RATE)
    for step in range(STEPS):
        ids = tokens(step, 4)
        optimizer.zero_grad()
        alone.model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    def equal() -> None:
        trained = torch.load(here / "trained.pt")
        own = {n: p for n, p in alone.model.named_parameters() if p.requires_grad}
        differ = max(
            ((own[name] - trained[name]).abs() / (1 + own[name].abs())).max().item() for name in own
        )  # as torch.testing.assert_close with rtol and atol
        assert differ <= SAME, f"parameters differ by {differ:.2g}"

    def same(made: Callable[[nn.Module], nn.Module]) -> None:
        ids = tokens()
        with torch.no_grad():
            other = made(llama()).eval()(input_ids=ids).logits
            differ = (alone.model.train()(input_ids=ids).logits - other).abs().max().item()
        assert differ < 1e-3, f"outputs differ by {differ:.2g}"

    checks = {
        "train": equal,
        "resume": lambda: same(_resumed(alone)),
        "load": lambda: same(alone.load),
    }
    for step, check in checks.items():
        if step != "train" or found["train"] == "yes":
            found[step] = cell(check)
    return found


def _resumed(alone: Any) -> Callable[[nn.Module], nn.Module]:
    """Return the function that resumes. `Ours.resume` also compares values bit for bit, which two
    processes do not reach; so it is replaced by a plain load."""
    if not isinstance(alone, Ours):
        resume: Callable[[nn.Module], nn.Module] = alone.resume
        return resume

    def loaded(base: nn.Module) -> nn.Module:
        from vbfmt.torch import load_checkpoint

        load_checkpoint(base, alone.folder / "checkpoint")
        return base

    return loaded


def _work(rank: int, folder: Path, name: str, method: type[Any]) -> None:
    """Train, save, pack and merge in one of two processes. The first one writes the results."""
    parallel: Any = None

    def train() -> None:
        nonlocal parallel
        parallel = setups()[name](method(llama(), folder))
        for step in range(STEPS):
            parallel.step(tokens(step, 4)[rank::2])
        with parallel.whole():
            trained = parallel.trained()
        if rank == 0:
            torch.save(trained, folder / "trained.pt")

    works: dict[str, Callable[[], object]] = {
        "train": train,
        "save": lambda: parallel.save(parallel.made.save, rank),
        "pack": lambda: parallel.save(parallel.made.pack, rank),
        "merge": lambda: parallel.made.merge(),
    }
    found = {step: cell(work) for step, work in works.items()}
    if rank == 0:
        (folder / "cells.json").write_text(json.dumps(found))


def cell(work: Callable[[], object]) -> str:
    """Return "yes", or the first words of the error."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - the table shows it
        return f"{type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}"
    return "yes"


def _whole(parameter: Any) -> torch.Tensor:
    whole: torch.Tensor = (
        parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    )
    return whole
