"""Adapters by name in a folder: ``alice`` is ``alice.vblora``."""

from __future__ import annotations

import logging
import os

from vbfmt.converters.vllm.pinned import SUFFIX, Pinned
from vbfmt.errors import ConfigError, VbfmtError

PathLike = str | os.PathLike[str]

_logger = logging.getLogger("vllm.vbfmt")

_LONGEST = 255 - len(SUFFIX)
"""Bytes of a name that file systems take."""


class Folder:
    """The packed adapters in one folder, subfolders left out.

    A file whose bank is external finds it there or in ``banks/``.

    Raises:
        ConfigError: there is no such folder.
    """

    banks = None

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
        """Return the adapter of that name as a path with its digest, None if there is none.

        A name is one component of a path, and a link that leaves the folder is not followed:
        whoever chooses names reaches nothing else. The path of a file that cannot be read has no
        digest, for the worker to refuse it: the client then gets another answer than for None.
        """
        if not _is_component(name):
            return None
        path = os.path.join(self._path, name + SUFFIX)
        real = os.path.realpath(path)
        if os.path.commonpath([real, self._real]) != self._real or not os.path.isfile(real):
            return None
        try:
            return str(Pinned.of(path))
        except VbfmtError as error:
            _logger.error("adapter %s: %s", name, error)
            return path


def _is_component(name: str) -> bool:
    """Return whether `name` can be the visible name of a file in a folder."""
    if not name or name.startswith(".") or not name.isprintable():
        return False
    return not set(name) & {"/", "\\"} and len(name.encode()) <= _LONGEST
