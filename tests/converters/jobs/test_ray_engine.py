"""The Ray engine with a fake Ray: its calls, and its reaction to workers that die.

`test_ray` tests the engine with the real Ray, if it is installed.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from vbfmt import errors
from vbfmt.converters import jobs
from vbfmt.converters.jobs import ray_cluster, tasks

WORKERS = 2


class WorkerCrashedError(Exception):
    """Ray's error for a worker that died."""


class Ray(ModuleType):
    """Runs each task when its result is asked for; the worker of a source dies `deaths` times."""

    exceptions = SimpleNamespace(RayError=WorkerCrashedError)

    def __init__(self, deaths, *, initialized=False):
        super().__init__("ray")
        self.deaths, self.initialized = dict(deaths), initialized
        self.calls, self.queued, self.most = [], 0, 0

    def is_initialized(self):
        return self.initialized

    def init(self, **options):
        self.calls.append(("init", options))

    def shutdown(self):
        self.calls.append(("shutdown", {}))

    def remote(self, *, max_retries):
        assert max_retries == 0
        return lambda function: SimpleNamespace(
            remote=lambda task, shard: self.submit(function, task, shard)
        )

    def submit(self, function, task, shard):
        self.queued += 1
        self.most = max(self.most, self.queued)
        return SimpleNamespace(run=lambda: function(task, shard), shard=shard).run

    def wait(self, waiting, *, num_returns):
        assert num_returns == 1
        return waiting[-1:], waiting[:-1]

    def get(self, run):
        self.queued -= 1
        outcomes = run()
        for outcome in outcomes:
            if self.deaths.get(outcome.source, 0) > 0:
                self.deaths[outcome.source] -= 1
                raise WorkerCrashedError
        return outcomes


@pytest.fixture
def run(monkeypatch):
    """Run a job of `count` items on a fake Ray, and return the outcomes by source and the fake."""

    def operation(task, item):
        return f"{item.source} {'again' if item.overwrite else 'first'}", None

    monkeypatch.setitem(tasks.OPERATIONS, "name", operation)

    def run(count, *, deaths=(), initialized=False):
        ray = Ray(deaths, initialized=initialized)
        monkeypatch.setitem(sys.modules, "ray", ray)
        items = [jobs.Item(f"{number}", absent_before=True) for number in range(count)]
        done = jobs.run(jobs.Task("name"), items, workers=WORKERS, engine="ray", shard=1)
        return {outcome.source: outcome for outcome in done}, ray

    return run


def test_every_item_is_processed_and_few_tasks_wait_at_a_time(run):
    outcomes, ray = run(50)
    assert {source: each.digest for source, each in outcomes.items()} == {
        f"{number}": f"{number} first" for number in range(50)
    }
    assert ray.most == ray_cluster._AT_ONCE * WORKERS
    assert ray.queued == 0


@pytest.mark.parametrize(
    ("address", "options"),
    [(None, {"num_cpus": WORKERS, "include_dashboard": False}), ("ray://head:10001", {})],
)
def test_a_cluster_is_started_or_an_existing_one_is_used(run, monkeypatch, address, options):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    _, ray = run(1)
    quiet = {"log_to_driver": False, "configure_logging": False}
    assert ray.calls == [("init", {**options, **quiet}), ("shutdown", {})]


def test_a_cluster_of_the_caller_is_not_shut_down(run):
    outcomes, ray = run(1, initialized=True)
    assert outcomes["0"].ok
    assert ray.calls == []


def test_a_shard_whose_worker_dies_is_tried_again_and_may_replace_what_it_wrote(run, caplog):
    caplog.set_level("INFO", "vbfmt")
    outcomes, _ = run(5, deaths={"3": ray_cluster._RETRIES})
    assert outcomes["3"].digest == "3 again"
    again = ["WorkerCrashedError: 1 inputs run again"] * ray_cluster._RETRIES
    assert caplog.messages == again
    assert all(each.ok for each in outcomes.values())


def test_a_shard_that_kills_every_worker_has_failed_and_the_others_are_done(run):
    outcomes, ray = run(5, deaths={"3": 1_000})
    failed = outcomes.pop("3")
    assert (failed.status, failed.kind, failed.message) == (
        "failed",
        "worker",
        "WorkerCrashedError",
    )
    assert all(each.ok for each in outcomes.values())
    assert ray.deaths["3"] == 1_000 - 1 - ray_cluster._RETRIES


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'vbfmt\[ray\]'"):
        list(jobs.run(jobs.Task("verify"), [jobs.Item("x")], engine="ray"))
