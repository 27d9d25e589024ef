"""BLAS starts no threads for small decompositions."""

from __future__ import annotations

import numpy as np
import pytest

from vbfmt._math import blas
from vbfmt.converters.lowrank.reduction import reduced


def threads() -> set[int]:
    import threadpoolctl

    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"}  # fmt: skip


@pytest.fixture
def two_threads():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        if threads() != {2}:
            pytest.skip("a BLAS of one thread")
        yield


def test_small_decompositions_use_one_thread_and_large_ones_all(two_threads):
    with blas.few_threads(1000):
        assert threads() == {1}
    assert threads() == {2}
    with blas.few_threads(1 << 40):
        assert threads() == {2}


def test_the_number_of_threads_is_restored_after_an_error(two_threads):
    with pytest.raises(ZeroDivisionError), blas.few_threads(1000):
        raise ZeroDivisionError
    assert threads() == {2}


def test_a_rank_is_reduced_without_threads(two_threads, monkeypatch):
    seen = []
    real = np.linalg.qr
    monkeypatch.setattr(np.linalg, "qr", lambda matrix: seen.append(threads()) or real(matrix))
    a, b = np.ones((8, 96), np.float32), np.ones((64, 8), np.float32)
    reduced(a, b, 4)
    assert seen == [{1}, {1}]


def test_decompositions_work_without_threadpoolctl(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "threadpoolctl", None)
    blas._controller.cache_clear()
    try:
        with blas.few_threads(1000):
            pass
    finally:
        blas._controller.cache_clear()
