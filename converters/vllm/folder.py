"""Adapters by name in a folder: ``alice`` is ``alice.vblora``."""

from __future__ import annotations

import os

from vbfmt.converters.vllm.pinned import SUFFIX
from vbfmt.errors import ConfigError

PathLike = str | os.PathLike[str]

_LONGEST = 255 - len(SUFFIX)
"""Bytes of a name that file systems take."""


class Folder:
    """The packed adapters in one folder, subfolders left out.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, path: PathLike) -> None:
        self._path = os.path.abspath(path)
        self._real = os.path.realpath(path)
        if not os.path.isdir(self._real):
            raise ConfigError(
                "no folder of adapters",
                found=os.fspath(path),
                expected="the path of a folder with .vblora files",
            )

    def find(self, name: str) -> str | None:
        """Return the path of the adapter of that name, or None if there is none.

        A name is one component of a path, and a link that leaves the folder is not followed:
        whoever chooses names reaches nothing else.
        """
        if not _is_component(name):
            return None
        path = os.path.join(self._path, name + SUFFIX)
        real = os.path.realpath(path)
        inside = os.path.commonpath([real, self._real]) == self._real
        return path if inside and os.path.isfile(real) else None


def _is_component(name: str) -> bool:
    """Return whether `name` can be the visible name of a file in a folder."""
    if not name or name.startswith(".") or not name.isprintable():
        return False
    return not set(name) & {"/", "\\"} and len(name.encode()) <= _LONGEST
