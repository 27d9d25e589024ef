"""Record which batch each thread is running."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from vbfmt.errors import ModelError
from vbfmt.torch.pool.batch import Batch

_HERE = os.path.dirname(__file__)


class Running(threading.local):
    """The batches that a thread is running, by the key of the pool."""

    def __init__(self) -> None:
        self.batches: dict[int, Batch] = {}


running = Running()
"""The batches are kept here, not on the pool's hooks: `torch.compile` treats the sizes that it
finds on modules as constant."""


@contextlib.contextmanager
def run(pool: int, batch: Batch) -> Iterator[None]:
    """Make `batch` the running batch of a pool in this thread, within the block.

    A generator or coroutine may be suspended within its block. If another one then began a batch in
    the same thread, the first would continue with the wrong adapters. So this is refused.

    Raises:
        ModelError: another block of this thread is suspended, or this block ends in another thread.
    """
    outer = running.batches.get(pool)
    if outer is not None and outer.ended:  # it ended in another thread
        outer = None
    if outer is not None and not _is_called_by(outer.opener):
        raise ModelError(
            "another batch of this pool is suspended in this thread",
            advice="do not yield or await within `forward`; run concurrent batches in threads",
        )
    batch.opener = _opener()
    running.batches = {**running.batches, pool: batch}
    try:
        yield
        if running.batches.get(pool) is not batch:
            raise ModelError(
                "a batch has ended in a different thread from the one where it began; the model "
                "may have run without its adapters",
                advice="do not yield or await within `forward`",
            )
    finally:
        batch.ended = True
        if running.batches.get(pool) is batch:
            others = {key: each for key, each in running.batches.items() if key != pool}
            running.batches = others if outer is None else {**others, pool: outer}


def _opener() -> int:
    """Return the id of the frame that contains the block. The id is valid while the frame
    exists."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (_is_own(frame) or _is_own(frame.f_back)):
        frame = frame.f_back
    return id(frame)


def _is_own(frame: FrameType | None) -> bool:
    """Return whether a frame belongs to a context manager of this package or of contextlib.

    Context managers are suspended while their blocks run.
    """
    file = "" if frame is None else frame.f_code.co_filename
    return file == contextlib.__file__ or os.path.dirname(file) == _HERE


def _is_called_by(opener: int) -> bool:
    """Return whether the frame with this id is running, that is, has called this function, directly
    or indirectly."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and id(frame) != opener:
        frame = frame.f_back
    return frame is not None
