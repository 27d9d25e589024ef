"""The results as a table: mean and standard deviation over seeds, and bytes for each user."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from tests.examples.fleet.methods import METHODS, OWN
from tests.examples.fleet.runs import Job
from tests.examples.fleet.texts import KINDS


def table_of(results: list[dict[str, Any]], jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return one row for each method that has results of these jobs.

    Each row has ``scores``: kind → the scores in the order of the seeds, ``bytes``: what a user's
    adapter takes without its head, and ``shared_bytes``: the bank that all users share.
    """
    rows: dict[str, dict[str, Any]] = {}
    for job in jobs:
        for kind in job.kinds:
            found = job.result_in(results, kind)
            if found is None:
                continue
            method = METHODS[job.method]
            own = method.bytes_of_bank if method.bank == OWN else 0
            row = rows.setdefault(
                job.method,
                {
                    "method": job.method,
                    "title": method.title,
                    "bytes": found["bytes"] + own,
                    "shared_bytes": method.bytes_of_bank - own,
                    "settings": job.key(kind)["settings"],
                    "scores": {},
                },
            )
            row["scores"].setdefault(kind, []).append(round(found["score"], 4))
    return list(rows.values())


def noise_of(row: dict[str, Any]) -> float | None:
    """Return two standard errors of a mean over seeds; the standard deviation is pooled over all
    kinds."""
    spreads = [statistics.variance(each) for each in row["scores"].values() if len(each) > 1]
    if not spreads:
        return None
    seeds = min(map(len, row["scores"].values()))
    return float(2 * (statistics.mean(spreads) / seeds) ** 0.5)


def as_markdown(table: Sequence[dict[str, Any]]) -> str:
    """Return the table with a column for each kind, in percent, and the bytes of a user."""
    lora = next((row["bytes"] for row in table if row["method"] == "lora"), None)
    lines = [
        f"| | {' | '.join(KINDS)} | seeds | bytes per user | of LoRA's |",
        f"|---|{'---|' * len(KINDS)}---|---|---|",
    ]
    for row in table:
        cells = [_cell(row["scores"].get(kind)) for kind in KINDS]
        seeds = max(map(len, row["scores"].values()))
        share = f"{row['bytes'] / lora:.1%}" if lora else ""
        lines.append(
            f"| {row['title']} | {' | '.join(cells)} | {seeds} | {row['bytes']:,} | {share} |"
        )
    return "\n".join(lines)


def as_json(table: Sequence[dict[str, Any]]) -> str:
    """Return the table with every score, one line for each method."""
    return "[\n" + ",\n".join(json.dumps(row) for row in table) + "\n]\n"


def _cell(scores: list[float] | None) -> str:
    if not scores:
        return "–"
    mean = f"{100 * statistics.mean(scores):.1f}"
    return f"{mean} ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else mean
