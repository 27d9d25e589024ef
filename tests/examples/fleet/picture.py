"""The picture: score against bytes per user, one panel for each kind of sentences."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.examples.fleet.report import noise_of
from tests.examples.fleet.texts import KINDS

COLOURS = ("#4c4c4c", "#a0a0a0", "#d98c2b", "#1f6fb4", "#7fb2dd", "#9c5fb5", "#3f9e58")


def draw(table: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture (PNG)."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(KINDS), figsize=(12, 3.8), layout="constrained")
    for axes, kind in zip(panels, KINDS, strict=True):
        for row, colour in zip(table, COLOURS, strict=False):
            scores = row["scores"].get(kind)
            if not scores or not row["bytes"]:
                continue
            kilobytes = row["bytes"] / 1000
            axes.scatter([kilobytes] * len(scores), scores, s=12, color=colour, alpha=0.45)
            axes.scatter(kilobytes, statistics.mean(scores), s=64, color=colour, label=row["title"])
            noise = noise_of(row)
            if row["method"] == "lora" and noise is not None:
                mean = statistics.mean(scores)
                axes.axhspan(mean - noise, mean + noise, color=colour, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.set_title(kind)
        axes.set_xlabel("kB per user, without head")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("balanced accuracy")
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)
