"""Whether files are still as they were: so that what was read of them belongs together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from vbfmt.errors import StorageError

PathLike = str | os.PathLike[str]

Stamps = Mapping[PathLike, "tuple[int, int, int, int] | None"]
"""Path → inode, size, time of modification and time of change; None if there is no such file."""


def stamps(paths: Iterable[PathLike]) -> Stamps:
    """Return the stamps of files, which need not exist. Take them before the files are read."""
    return {path: _stamp(path) for path in paths}


def require(before: Stamps, what: str) -> None:
    """Check that no file was written, replaced or removed since its stamp was taken.

    Args:
        before: the stamps.
        what: what the files are together, for the message.

    Raises:
        StorageError: with the first file that has changed.
    """
    for path, stamp in before.items():
        if _stamp(path) != stamp:
            raise StorageError(
                f"a file changed while {what} was read",
                file=path,
                advice="try again when it is complete",
            )


def _stamp(path: PathLike) -> tuple[int, int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
