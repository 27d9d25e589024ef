"""Find adapters by name in a folder: ``alice`` is the file ``alice.vblora``."""

from __future__ import annotations

import logging
import os

from vbfmt._files import PathLike
from vbfmt.converters.vllm.pinned import SUFFIX, Pinned
from vbfmt.errors import ConfigError, VbfmtError

_logger = logging.getLogger("vllm.vbfmt")

_LONGEST = 255 - len(SUFFIX)
"""Largest length of a name in bytes. File systems allow 255, including the suffix."""


class Folder:
    """The packed adapters in a folder, not in its subfolders.

    External banks are searched for in the folder and in its subfolder ``banks``.

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
        """Return the path with digest of the adapter with this name, or None if there is none.

        Names come from clients and must not give access to other files. So a name must be one
        component of a path, and a link that leads out of the folder is not followed. If the file
        cannot be read, the path has no digest. The worker refuses such a path, so the client learns
        that the adapter exists but cannot be used.
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
    """Return whether `name` is one path component and does not begin with a dot."""
    if not name or name.startswith(".") or not name.isprintable():
        return False
    return not set(name) & {"/", "\\"} and len(name.encode()) <= _LONGEST
