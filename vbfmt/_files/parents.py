"""Create the parent folders of an output, and remove them if nothing was written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from vbfmt._files import PathLike, storage
from vbfmt.errors import TargetError


def nearest(path: PathLike) -> str:
    """Return the nearest existing folder above `path`.

    Raises:
        TargetError: something on the path is not a folder, or its drive does not exist.
    """
    parent = os.path.dirname(os.path.realpath(path))
    while not os.path.lexists(parent) and os.path.dirname(parent) != parent:
        parent = os.path.dirname(parent)
    exists = os.path.lexists(parent)  # on Windows, a drive or share may not
    if not exists or not os.path.isdir(parent):
        what = "is a file" if exists else "does not exist"
        raise TargetError(
            "no folder to write into",
            file=path,
            found=f"{parent}, which {what}",
            advice="choose another name",
        )
    return parent


@contextlib.contextmanager
def created(path: PathLike) -> Iterator[None]:
    """Create the missing folders above `path`. If the block fails, remove those that are empty.

    Raises:
        TargetError: as for `nearest`.
        StorageError: a folder cannot be created.
    """
    existing = nearest(path)
    folder = os.path.dirname(os.path.realpath(path))
    missing = []
    while folder != existing:
        missing.append(folder)
        folder = os.path.dirname(folder)
    try:
        with storage.refusing("cannot create a folder for", path):
            for each in reversed(missing):
                os.makedirs(each, exist_ok=True)
        yield
    except BaseException:
        for each in missing:
            with contextlib.suppress(OSError):  # not empty: another process has written to it
                os.rmdir(each)
        raise
