"""Which setups work: train, save, resume, pack, load, merge; ours, PEFT's VB-LoRA, PEFT's LoRA.

``python -m tests.matrix [WORDS]``: prints a table. A cell is ``yes``, the first words of the error,
or ``–`` if the adapter could not be made. WORDS select setups by name. Setups that need a package
that is not installed are left out: bitsandbytes, torchao, hqq, deepspeed. Trainers:
`tests/torch/test_trainer.py`, `test_trl.py`, `test_lightning.py`, `test_accelerate.py`.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.matrix import processes
from tests.matrix.methods import METHODS
from tests.matrix.setups import Setup, setups
from tests.torch.models import tokens

STEPS = ("train", "save", "resume", "pack", "load", "merge")
CLOSE = 0.05


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    words = " ".join(sys.argv[1:])
    print(f"| setup | method | {' | '.join(STEPS)} |")
    print(f"|---|---|{'---|' * len(STEPS)}")
    for name, setup in setups().items():
        for method in METHODS if words in name else ():
            with tempfile.TemporaryDirectory() as folder:
                _print(name, method, _cells(method, setup, Path(folder)))
    for name in processes.setups():
        for method in METHODS if words in name else ():
            with tempfile.TemporaryDirectory() as folder:
                cells = processes.cells(name, method, Path(folder))
                _print(f"two processes, {name}", method, [cells[step] for step in STEPS])


def _print(name: str, method: type[Any], cells: Iterable[str]) -> None:
    print(f"| {name} | {method.__name__} | {' | '.join(cells)} |", flush=True)


def _cells(method: type[Any], setup: Setup, folder: Path) -> Any:
    """Yield the table's cells for one method in one setup. A failed step does not stop the later
    ones."""
    ids, made = tokens(), None

    def outputs(model: nn.Module) -> Tensor:
        with torch.no_grad(), _autocast(setup):
            result: Tensor = model(input_ids=ids).logits.float()
        return result

    def train() -> None:
        nonlocal made
        made = method(setup.base(folder), folder, setup.targets)
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
        # PEFT's top-k form can only be evaluated. bitsandbytes repacks 4-bit weights in evaluation.
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
        yield "–" if step != "train" and made is None else processes.cell(works[step])


def _autocast(setup: Setup) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=setup.autocast)


if __name__ == "__main__":
    main()
