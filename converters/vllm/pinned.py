"""The path of a packed file with its digest.

vLLM's cache uses the name and the path of a LoRA as the key. With the digest in the path, an
adapter never gets cached results of an adapter that it replaced.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from vbfmt._files import PathLike, storage
from vbfmt._files.banks import Sources
from vbfmt.adapter import Adapter
from vbfmt.errors import ConfigError, StorageError
from vbfmt.packed import load_with_form

SUFFIX = ".vblora"
LARGEST = 1 << 28
"""Largest size in bytes of a file that a server reads into memory."""

_PINNED = re.compile(rf"(?P<file>/.*{re.escape(SUFFIX)})@(?P<digest>sha256:[0-9a-f]{{64}})", re.S)


@dataclass(frozen=True)
class Pinned:
    """A packed file and the digest that it must have when it is loaded.

    Attributes:
        file: its absolute path.
        digest: the adapter's digest, ``sha256:…``.
    """

    file: str
    digest: str

    @classmethod
    def of(cls, path: PathLike, *, banks: Sources | None = None) -> Pinned:
        """Verify a file, and return it with its digest. `banks` is as in `vbfmt.load`.

        Raises:
            VbfmtError: the file is damaged or cannot be read.
            ConfigError: the file's name does not end in ``.vblora``.
        """
        file = os.path.abspath(path)
        if not file.endswith(SUFFIX):
            raise ConfigError("not the name of a packed adapter", found=file, expected=f"…{SUFFIX}")
        return cls(file, _read(file, banks)[1])

    @classmethod
    def parse(cls, path: str) -> Pinned | None:
        """Return the file and the digest in a path, or None if the path is not a packed adapter's.

        Raises:
            ConfigError: the path is a packed adapter's, but has no digest.
            VbfmtError: the path has no digest, and the file is damaged or cannot be read.
        """
        match = _PINNED.fullmatch(path)
        if match is not None:
            return cls(match["file"], match["digest"])
        if not path.endswith(SUFFIX):
            return None
        raise ConfigError(
            "in vLLM, the path of a packed adapter needs its digest",
            found=path,
            expected=str(cls.of(path)),
            advice="without it, a new adapter could get cached results of the one it replaces",
        )

    def __str__(self) -> str:
        return f"{self.file}@{self.digest}"

    def load(self, *, banks: Sources | None = None) -> Adapter:
        """Read the adapter into memory and verify it. Later changes to the file do not affect it.

        Raises:
            DigestError: the file has another digest.
            VbfmtError: the file is damaged, too large or cannot be read.
        """
        return _read(self.file, banks, self.digest)[0]


def _read(file: str, banks: Sources | None, digest: str | None = None) -> tuple[Adapter, str]:
    with storage.refusing("cannot read", file):
        size = os.stat(file).st_size
    if size > LARGEST:
        raise StorageError(
            "the file is too large to be served",
            file=file,
            found=f"{size} bytes",
            expected=f"at most {LARGEST}",
        )
    return load_with_form(file, digest=digest, mmap=False, banks=banks)[:2]
