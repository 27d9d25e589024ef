"""The fleet example: its runs, how they resume, and the table of results."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("peft")
pytest.importorskip("sklearn")

from tests.examples.fleet import report
from tests.examples.fleet.methods import METHODS
from tests.examples.fleet.runs import is_done, jobs_of
from tests.examples.fleet.texts import KINDS

FOLDER = Path("results")


def result(job, kind, score, size=100):
    return {**job.key(kind), "score": score, "bytes": size}


def test_every_method_is_run_with_every_kind_and_seed():
    jobs = list(jobs_of(list(METHODS), 3, "test", FOLDER))
    runs = [(job.method, kind, job.seed) for job in jobs for kind in job.kinds]
    assert len(set(runs)) == len(runs)
    expected = {(m, kind, seed) for m in METHODS for kind in KINDS for seed in range(3)}
    assert expected - set(runs) == {("films", "films", seed) for seed in range(3)}


def test_a_run_is_done_when_all_its_kinds_are():
    (job,) = jobs_of(["joint"], 1, "test", FOLDER)
    results = [result(job, kind, 0.9) for kind in KINDS]
    assert is_done(job, results)
    assert not is_done(job, results[1:])


def test_another_setting_is_another_run():
    job = next(jobs_of(["seed"], 1, "test", FOLDER))
    before = result(job, "films", 0.9)
    assert is_done(job, [before])
    before["settings"] = {**before["settings"], "bound": 0.9}
    assert not is_done(job, [before])


def test_the_table_has_means_spreads_and_bytes():
    jobs = list(jobs_of(["lora", "own"], 2, "test", FOLDER))
    results = [result(job, kind, 0.8 + 0.02 * job.seed, 2000) for job in jobs for kind in job.kinds]
    lora, own = report.table_of(results, jobs)
    assert lora["scores"] == {kind: [0.8, 0.82] for kind in KINDS}
    settings = METHODS["own"].settings
    assert own["bytes"] == 2000 + 4 * settings.h * settings.b
    assert own["shared_bytes"] == 0
    lines = report.as_markdown([lora, own]).splitlines()
    assert "| LoRA, r = 8 | 81.0 ± 1.4 |" in lines[2]
    assert "100.0%" in lines[2]


def test_a_shared_bank_is_not_counted_for_the_user():
    jobs = list(jobs_of(["seed"], 1, "test", FOLDER))
    (row,) = report.table_of([result(job, job.kinds[0], 0.9, 2000) for job in jobs], jobs)
    settings = METHODS["seed"].settings
    assert (row["bytes"], row["shared_bytes"]) == (2000, 4 * settings.h * settings.b)
