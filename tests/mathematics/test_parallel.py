"""Parallel work: every item is done once, and the earliest error is raised."""

from __future__ import annotations

import os
import threading

import pytest

from vbfmt._math import parallel


@pytest.fixture(params=[1, 4])
def workers(request, monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: request.param)
    return request.param


@pytest.mark.parametrize("alone", [True, False])
def test_every_item_is_done_once(workers, alone):
    done, spaces = [], []

    def scratch():
        spaces.append(object())
        return spaces[-1]

    def work(item, space):
        assert space in spaces
        done.append(item)

    parallel.for_each(range(100), work, scratch, alone=alone)
    assert sorted(done) == list(range(100))
    assert len(spaces) == (1 if alone else workers)


def test_no_more_workers_than_items(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 8)
    spaces = []
    parallel.for_each([1, 2], lambda *_: None, lambda: spaces.append(0), alone=False)
    assert len(spaces) == 2
    parallel.for_each([], lambda *_: None, lambda: spaces.append(0), alone=False)
    assert len(spaces) <= 3


def test_the_error_of_the_earliest_item_is_raised(workers):
    """All workers fail; the one with the first item fails last."""
    others = threading.Barrier(workers)

    def work(item, _):
        others.wait(timeout=30)
        raise KeyError(item)

    with pytest.raises(KeyError) as error:
        parallel.for_each(range(4), work, lambda: None, alone=False)
    assert error.value.args == (0,)


def test_the_number_of_cores_if_the_system_has_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert parallel.cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert parallel.cores() == 1
