"""The threads of NumPy's BLAS, which for many small products cost more than they give."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

_WORTH_THREADS = 1 << 27
"""Multiplications of one decomposition from which on threads of its own pay."""


@contextlib.contextmanager
def few_threads(multiplications: int) -> Iterator[None]:
    """Keep BLAS from starting threads, unless there are so many multiplications that it pays.

    It holds for the whole process while the block runs.
    """
    controller = _controller() if multiplications < _WORTH_THREADS else None
    if controller is None:
        yield
        return
    with controller.limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> Any:
    """What sets the number of threads, found once: looking for the libraries takes a millisecond.

    None without threadpoolctl; then the number stays what it is.
    """
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()
