"""Adapters by name in a folder: ``alice`` is ``alice.vblora``."""

from __future__ import annotations

import logging
import os

from vbfmt.converters.vllm.pinned import SUFFIX, Pinned
from vbfmt.errors import ConfigError, VbfmtError

PathLike = str | os.PathLike[str]

_logger = logging.getLogger("vllm.vbfmt")

_LONGEST = 255 - len(SUFFIX)
"""Most bytes of a name: file systems allow 255 with the suffix."""


class Folder:
    """The packed adapters in a folder, without its subfolders.

    External banks are looked for in the folder and in its subfolder ``banks``.

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
        """Return the path and digest of the adapter with that name, None if there is none.

        Clients choose names, so they must not reach files elsewhere: a name must be one component
        of a path, and a link that leads out of the folder is not followed. For a file that cannot
        be read, return its path without a digest. The worker refuses that path, so the client
        learns that the adapter exists but is unusable.
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
