"""Where a command may write: found out before it has read anything, and told in one line."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from vbfmt._files import storage
from vbfmt.errors import TargetError


def require_file(path: str, *, force: bool) -> None:
    """A file may be written there.

    Raises:
        TargetError: it is named as a folder, is something other than a regular file, or there is
            no folder to write it into.
        OutputExistsError: it exists, and `force` is not set.
    """
    if path.endswith(_SEPARATORS):
        raise TargetError("the output is one file", file=path, found="the name of a folder")
    _require_kind(path, stat.S_IFREG)
    _require_parent(path)
    if not force:
        storage.require_absent(path)


def require_folder(path: str, *, force: bool) -> None:
    """A folder may be written there. Errors as `require_file`."""
    _require_kind(path, stat.S_IFDIR)
    _require_parent(path)
    if not force:
        storage.require_absent(path)


def require_not_read(path: str, sources: Iterable[str | os.PathLike[str]]) -> None:
    """The output would not take the place of a file that the command reads.

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


def require_none_read(
    folder: str, names: Iterable[str], sources: Iterable[str | os.PathLike[str]]
) -> None:
    """None of the files of these names in a folder is one that the command reads.

    Raises:
        TargetError
    """
    sources = list(sources)
    for name in names:
        require_not_read(os.path.join(folder, name), sources)


def configs(base: str | None) -> list[str]:
    """What is read of a base model of which only the config matters: that, or its one file."""
    return [] if base is None else [base, os.path.join(base, "config.json")]


_SEPARATORS = tuple(filter(None, (os.sep, os.altsep)))
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def _require_kind(path: str, kind: int) -> None:
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


def _require_parent(path: str) -> None:
    parent = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(parent):
        raise TargetError("no folder to write into", file=path, advice="make it first")
