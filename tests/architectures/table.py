"""The table of the results of ``make architectures``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import peft
import transformers

from tests.architectures.check import Result

_WORST = ("wrong", "failed", "refused", "equal")
_FOLDER = re.compile(r"/tmp/\S*?/(base|lora|x\.vblora)\b")


def outcome(result: Result) -> str:
    """Return the worst outcome of the steps, or ``not compared``."""
    if result.without:
        return "not compared"
    kinds = {step.partition(":")[0] for step in result.steps.values()}
    return next(kind for kind in _WORST if kind in kinds)


def text(results: Sequence[Result]) -> str:
    """Return Markdown: the counts, then every architecture, then the reasons."""
    counts = Counter(map(outcome, results))
    compared = len(results) - counts["not compared"]
    lines = [
        "# Architectures",
        "",
        f"Made by `make architectures` with transformers {transformers.__version__} and PEFT "
        f"{peft.__version__}. Every architecture is made tiny, PEFT puts a VB-LoRA adapter with",
        "trained biases, heads and routers into it, and three results are compared with PEFT's own",
        "merge, to 1e-4 in every tensor: the packed adapter merged into the base, the LoRA that it",
        "expands to if its base is given, and `load_adapter`.",
        "",
        f"{compared} compared: {counts['equal']} equal throughout, {counts['refused']} refused in "
        f"one of the three, {counts['failed']} failed, {counts['wrong']} wrong.",
        "",
        "| task | architecture | layers | merge | expand | load |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        if not result.without:
            steps = (result.steps.get(step, "-").partition(":")[0] for step in _STEPS)
            lines.append(
                f"| {result.task} | {result.name} | {result.modules} | {' | '.join(steps)} |"
            )
    lines += ["", "## Reasons", ""]
    for result in results:
        for step, what in result.steps.items():
            if what != "equal":
                lines.append(f"* {result.name}, {step}: {_FOLDER.sub(_inner, what)}")
    lines += ["", "## Not compared", ""]
    lines += [f"* {result.name}: {_plain(result.without)}" for result in results if result.without]
    return "\n".join(lines) + "\n"


_STEPS = ("merge", "expand", "load")


def _inner(match: re.Match[str]) -> str:
    return match[1]


def _plain(reason: str) -> str:
    return re.sub(r"/tmp/\S+", "", reason)[:160].strip()
