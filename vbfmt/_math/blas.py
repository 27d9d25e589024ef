"""Limit the threads of NumPy's BLAS, which slow down many small products."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

_WORTH_THREADS = 1 << 27
"""Number of multiplications from which a decomposition is faster with several BLAS threads."""


@contextlib.contextmanager
def few_threads(multiplications: int) -> Iterator[None]:
    """Limit BLAS to one thread in the block, unless there are many multiplications.

    The limit applies to the whole process while the block runs.
    """
    controller = _controller() if multiplications < _WORTH_THREADS else None
    if controller is None:
        yield
        return
    with controller.limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> Any:
    """Return threadpoolctl's controller, or None if that package is not installed.

    It is cached, because searching for the libraries takes a millisecond.
    """
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()
