"""The picture: score against bytes per user, one panel for each kind of sentences."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from tests.examples.fleet.report import noise_of
from tests.examples.fleet.texts import KINDS

COLOURS = {
    "lora": "#4c4c4c",
    "seed": "#1f6fb4",
    "seed-k2": "#12406b",
    "seed-k8": "#56a3e0",
    "joint": "#3f9e58",
    "own": "#d98c2b",
    "films": "#9c5fb5",
    "seed-plain": "#7fb2dd",
}
KILOBYTES = (5, 10, 30, 100, 300, 1000)
SPAN = 0.1  # height of each panel's axis, so that scales are equal


def draw(table: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture (PNG)."""
    rows = [row for row in table if row["method"] in COLOURS]
    figure, panels = pyplot.subplots(1, len(KINDS), figsize=(12, 3.8), layout="constrained")
    labels = {}
    for axes, kind in zip(panels, KINDS, strict=True):
        shown = [row for row in rows if row["scores"].get(kind)]
        for row in shown:
            labels[row["title"]] = _draw_method(axes, row, row["scores"][kind])
        _lay_out(axes, kind, [score for row in shown for score in row["scores"][kind]])
    panels[0].set_ylabel("balanced accuracy, %")
    figure.legend(
        list(labels.values()), list(labels), loc="outside lower center", ncols=3, frameon=False
    )
    figure.savefig(path, dpi=110)


def _draw_method(axes: Axes, row: dict[str, Any], scores: list[float]) -> Any:
    """Draw the mean, each seed as a small dot, and LoRA's noise as a band."""
    colour = COLOURS[row["method"]]
    mean = statistics.mean(scores)
    axes.scatter([row["bytes"] / 1000] * len(scores), scores, s=14, color=colour, alpha=0.5)
    noise = noise_of(row)
    if row["method"] == "lora" and noise is not None:
        axes.axhspan(mean - noise, mean + noise, color=colour, alpha=0.12, linewidth=0)
    return axes.scatter(row["bytes"] / 1000, mean, s=64, color=colour)


def _lay_out(axes: Axes, kind: str, scores: list[float]) -> None:
    middle = (min(scores) + max(scores)) / 2 if scores else 0.5
    axes.set(title=kind, xlabel="kB per user, without head", xscale="log", xlim=(3, 1500))
    axes.set_ylim(middle - SPAN / 2, middle + SPAN / 2)
    axes.xaxis.set_major_locator(FixedLocator(KILOBYTES))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    axes.spines[["top", "right"]].set_visible(False)
