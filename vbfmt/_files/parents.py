"""The folders that an output is written into: made when they are needed, removed in vain."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from vbfmt._files import storage
from vbfmt.errors import TargetError

PathLike = str | os.PathLike[str]


def nearest(path: PathLike) -> str:
    """The nearest folder above `path` that exists: where missing ones would be made.

    Raises:
        TargetError: something that is no folder stands in the way.
    """
    parent = os.path.dirname(os.path.realpath(path))
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise TargetError(
            "no folder to write into",
            file=path,
            found=f"{parent}, which is a file",
            advice="choose another name",
        )
    return parent


@contextlib.contextmanager
def made(path: PathLike) -> Iterator[None]:
    """The missing folders above `path`; where the block fails, those that are empty are removed.

    Raises:
        TargetError: as `nearest`.
        StorageError: the operating system refused.
    """
    existing = nearest(path)
    folder = os.path.dirname(os.path.realpath(path))
    missing = []
    while folder != existing:
        missing.append(folder)
        folder = os.path.dirname(folder)
    try:
        try:
            for each in reversed(missing):
                os.makedirs(each, exist_ok=True)
        except OSError as error:
            raise storage.refusal("cannot make a folder", path, error) from None
        yield
    except BaseException:
        for each in missing:
            with contextlib.suppress(OSError):  # somebody has put something there
                os.rmdir(each)
        raise
