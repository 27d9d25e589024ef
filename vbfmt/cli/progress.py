"""Show a progress bar for long work, only on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from vbfmt.cli import show

_PATIENCE = 0.5  # seconds before a bar appears

Progress = Callable[[int, int], None]
"""Called with the amount done since the last call, and the total."""


@contextmanager
def shown(unit: str) -> Iterator[Progress | None]:
    """Show a bar on standard error. If it is not a terminal, or with --quiet, yield None.

    Args:
        unit: what is counted: ``bytes``, or a plural noun.
    """
    if not sys.stderr.isatty() or show.verbosity() < 0:
        yield None
        return
    bar = _Bar(unit)
    try:
        yield bar.advance
    finally:
        bar.close()


class _Bar:
    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._start = time.monotonic()
        self._done = 0
        self._drawn = 0
        self._bar: Any = None

    def advance(self, count: int, total: int) -> None:
        self._done += count
        if self._bar is None:
            if time.monotonic() - self._start < _PATIENCE:
                return
            self._bar = click.progressbar(
                length=total, item_show_func=self._words(total), show_pos=False, file=sys.stderr
            )
            self._bar.__enter__()
        self._bar.update(self._done - self._drawn, self._done)
        self._drawn = self._done

    def close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)

    def _words(self, total: int) -> Callable[[int | None], str | None]:
        def words(done: int | None) -> str | None:
            rate = (done or 0) / max(time.monotonic() - self._start, 1e-9)
            if self._unit == "bytes":
                return f"{show.size(done or 0)} of {show.size(total)}, {show.size(rate)}/s"
            return f"{done or 0:,} of {total:,} {self._unit}, {rate:,.0f}/s"

        return words
