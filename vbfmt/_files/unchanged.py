"""Check that files have not changed while they were read, so that their contents match."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from vbfmt._files import PathLike
from vbfmt.errors import StorageError

Stamps = Mapping[PathLike, "tuple[int, int, int, int] | None"]
"""Path → inode, size, modification time and change time, or None if the file does not exist."""


def stamps(paths: Iterable[PathLike]) -> Stamps:
    """Return the stamps of files. Call this before the files are read. Files may be missing."""
    return {path: _stamp(path) for path in paths}


def require(before: Stamps, what: str) -> None:
    """Check that no file was written, replaced or removed since its stamp was taken.

    Args:
        before: the stamps.
        what: a description of the files, for the message.

    Raises:
        StorageError: a file has changed. The message names the first one.
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
