"""Checks of where an output would be written, before anything is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from vbfmt._files import parents, storage
from vbfmt.errors import TargetError

PathLike = str | os.PathLike[str]


def require_file(path: PathLike, *, overwrite: bool) -> None:
    """Check that a file may be written there. Missing folders above it are no obstacle.

    Raises:
        TargetError: it is named as a folder, is something other than a regular file, or would be
            written below a file.
        OutputExistsError: it exists, and `overwrite` is not set.
    """
    if os.fspath(path).endswith(_SEPARATORS):
        raise TargetError("the output is one file", file=path, found="the name of a folder")
    _require_kind(path, stat.S_IFREG)
    parents.nearest(path)
    if not overwrite:
        storage.require_absent(path)


def require_folder(path: PathLike, *, overwrite: bool) -> None:
    """Check that a folder may be written there. Errors as `require_file`."""
    _require_kind(path, stat.S_IFDIR)
    parents.nearest(path)
    if not overwrite:
        storage.require_absent(path)


def require_not_read(path: PathLike, sources: Iterable[PathLike]) -> None:
    """Check that the output would not replace a file that is read.

    Raises:
        TargetError
    """
    for source in sources:
        if os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
            raise TargetError(
                "the output would replace what is read",
                file=path,
                advice="choose another name",
            )


def require_none_read(folder: PathLike, names: Iterable[str], sources: Iterable[PathLike]) -> None:
    """Check that no file of these names in a folder is one that is read.

    Raises:
        TargetError
    """
    sources = list(sources)
    for name in names:
        require_not_read(os.path.join(folder, name), sources)


_SEPARATORS = tuple(filter(None, (os.sep, os.altsep)))
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def _require_kind(path: PathLike, kind: int) -> None:
    try:
        found = stat.S_IFMT(os.stat(path).st_mode)
    except OSError:  # not there, or writing will say why not
        return
    if found != kind:
        raise TargetError(
            "the output exists already, and is not replaced",
            file=path,
            found=_KINDS.get(found, "something else"),
            expected=_KINDS[kind],
            advice="choose another name",
        )
