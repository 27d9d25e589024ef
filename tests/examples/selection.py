"""The paper's Table 5: ways to select vectors in training, on sentences from film reviews.

``python -m tests.examples.selection FOLDER --seeds 3`` prints a score for each method with the
paper's score; a run with a result in FOLDER is not repeated. The task and the base are those of
`tests.examples.fleet`: polarity of 1,000 sentences, the upper half of MiniLM, 3 epochs. Our score
is the balanced accuracy on 1,000 other sentences; the paper's is the correlation on CoLA.

The initial logits' standard deviation and learning rate are those of `CHOICES` that scored best on
the validation part, one seed each (``--choose`` repeats this search). Six methods were tried, all
but top-1, top-3 and top-6. The best choice was the same for all six, so every method uses it.
Gumbel-softmax adds noise with a standard deviation of 1.28, so initial logits with a standard
deviation of 0.1 would have hardly any effect.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.data import train_minilm as task
from tests.examples.fleet.training import Settings, config_of, scored, train
from tests.examples.fleet.upper_half import load_upper_half, prepared_split
from vbfmt.torch import (
    GumbelSoftmax,
    NoisyTopK,
    VBLoRAConfig,
    get_adapter_state_dict,
    inject,
    param_groups,
    set_adapter_state_dict,
)

H = 104
SIZES = Settings(h=H, bound=0.1, lr_bank=6e-3, train_unselected=False, starts_small=False)
HEAD_LR = 2e-3
SENTENCES = 1000
CHOICES = tuple((std, lr) for std in (0.1, 1.0, 3.0) for lr in (1e-2, 1e-1))  # of the logits


@dataclass(frozen=True)
class Method:
    """A way to train, and the paper's scores for it.

    Attributes:
        title: name in the table.
        k: k in training.
        papers: k in evaluation → the paper's score.
        selection: the selection in training; by default as in evaluation.
        std: the logits start as N(0, std²).
        lr: learning rate of the logits.
    """

    title: str
    k: int
    papers: dict[int, float]
    selection: Callable[..., Any] | None = None
    std: float = 3.0
    lr: float = 1e-1


METHODS = {
    "all": Method("Select-All", H, {H: 67.5}),
    "top-1": Method("top-1", 1, {1: 66.9}),
    "top-2": Method("top-2", 2, {2: 68.3}),
    "top-3": Method("top-3", 3, {3: 68.1}),
    "top-6": Method("top-6", 6, {6: 67.1}),
    "noisy-1": Method("noisy top-1", 1, {1: 45.3}, NoisyTopK(1.0)),
    "noisy-2": Method("noisy top-2", 2, {2: 62.6}, NoisyTopK(1.0)),
    "gs": Method("Gumbel-softmax, τ = 1/3", 2, {1: 57.1, 2: 57.3}, GumbelSoftmax(1 / 3)),
    "st-gs": Method(
        "straight-through, τ = 1/3",
        1,
        {1: 55.6, 2: 54.7},
        GumbelSoftmax(1 / 3, straight_through=True),
    ),
}


def config(method: Method, k: int) -> VBLoRAConfig:
    """Return the adapter's config with this k."""
    sizes = dataclasses.replace(SIZES, k=k, std=method.std)
    selection = method.selection if k == method.k else None
    return dataclasses.replace(config_of(sizes), selection=selection)


def scores(method: Method, seed: int, split: task.Split, part: str) -> dict[int, float]:
    """Train once, and return k in evaluation → score."""
    model = load_upper_half()
    torch.manual_seed(seed)
    inject(model, config(method, method.k))
    groups = param_groups(model, lr_bank=SIZES.lr_bank, lr_logits=method.lr, lr_rest=HEAD_LR)
    train(model, groups, {"default": split.train}, SIZES.epochs, seed)
    state = get_adapter_state_dict(model)
    found = {}
    for k in method.papers:
        other = load_upper_half()
        inject(other, config(method, k))
        set_adapter_state_dict(other, state)
        found[k] = scored(other, getattr(split, part))["score"]
    return found


def chosen_split(sdist: Path, folder: Path) -> task.Split:
    """Return the film reviews, with `SENTENCES` to train on."""
    split = prepared_split("films", sdist, folder)
    return dataclasses.replace(split, train=split.train[:: len(split.train) // SENTENCES or 1])


class Results:
    """Scores by run, kept in a file of JSON lines."""

    def __init__(self, folder: Path, part: str) -> None:
        self._path, self._part, self._folder = folder / "selection.jsonl", part, folder
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._known = [json.loads(line) for line in lines]
        self._split: task.Split | None = None

    def of(self, name: str, method: Method, seed: int) -> dict[int, float]:
        """Return the scores of a run. Do the run if there are none."""
        key = {"method": name, "std": method.std, "lr": method.lr, "seed": seed}
        key["part"] = self._part
        for each in self._known:
            if key.items() <= each.items():
                return {int(k): score for k, score in each["scores"].items()}
        started = time.monotonic()
        if self._split is None:
            sdist = next(self._folder.glob("vaderSentiment-*"), None)
            self._split = chosen_split(sdist or task.download_sdist(self._folder), self._folder)
        found = scores(method, seed, self._split, self._part)
        with self._path.open("a") as file:
            file.write(json.dumps({**key, "scores": found}) + "\n")
        print(f"# {key} {found} {time.monotonic() - started:.0f} s", flush=True)
        return found


def choices(names: Sequence[str], results: Results) -> Iterator[str]:
    """Yield lines with the score of each method on the validation part with each of `CHOICES`."""
    for name in names:
        for std, lr in CHOICES:
            method = dataclasses.replace(METHODS[name], std=std, lr=lr)
            for k, score in results.of(name, method, 0).items():
                yield f"{method.title}, top-{k} in evaluation, std {std}, lr {lr}: {score:.3f}"


def table(names: Sequence[str], seeds: int, results: Results) -> Iterator[str]:
    """Yield the lines of a table of the scores in descending order, with the paper's."""
    rows = []
    for name in names:
        method = METHODS[name]
        runs = [results.of(name, method, seed) for seed in range(seeds)]
        for k, papers in method.papers.items():
            found = [100 * run[k] for run in runs]
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            rows.append((statistics.mean(found), spread, papers, method, k))
    papers_order = sorted((row[2] for row in rows), reverse=True)
    yield "| in training | in evaluation | logits' std, rate | score | paper | paper's rank |"
    yield "|---|---|---|---|---|---|"
    for mean, spread, papers, method, k in sorted(rows, key=lambda row: -row[0]):
        shown = "all" if k == H else f"top-{k}"
        place = papers_order.index(papers) + 1
        yield (
            f"| {method.title} | {shown} | {method.std}, {method.lr} | {mean:.1f} ± {spread:.1f}"
            f" | {papers} | {place} |"
        )


def main() -> None:
    """Print the table, or the scores of the choices."""
    parser = argparse.ArgumentParser(description="The paper's Table 5 on film reviews.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--choose", action="store_true", help="try CHOICES on the validation part")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    task.make_deterministic()
    results = Results(arguments.folder, "validation" if arguments.choose else "test")
    if arguments.choose:
        lines = choices(arguments.methods, results)
    else:
        lines = table(arguments.methods, arguments.seeds, results)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
