"""A packed file together with its digest, as one path.

vLLM names cached results by the name and the path of a LoRA. With the digest in the path, an
adapter that has been replaced never shares them with its predecessor.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from vbfmt._files import storage
from vbfmt._files.banks import Sources
from vbfmt.adapter import Adapter
from vbfmt.errors import ConfigError, StorageError
from vbfmt.packed import load_with_digest

PathLike = str | os.PathLike[str]

SUFFIX = ".vblora"
LARGEST = 1 << 28
"""Bytes of the largest file that is read into a server's memory."""

_PINNED = re.compile(rf"(?P<file>/.*{re.escape(SUFFIX)})@(?P<digest>sha256:[0-9a-f]{{64}})", re.S)


@dataclass(frozen=True)
class Pinned:
    """A packed file that has this digest, or is refused.

    Attributes:
        file: an absolute path.
        digest: ``sha256:…``.
    """

    file: str
    digest: str

    @classmethod
    def of(cls, path: PathLike, *, banks: Sources | None = None) -> Pinned:
        """Return a sound file with the digest that it has now; `banks` as in `vbfmt.load`.

        Raises:
            VbfmtError: the file is damaged or cannot be read.
            ConfigError: its name does not end in ``.vblora``.
        """
        file = os.path.abspath(path)
        if not file.endswith(SUFFIX):
            raise ConfigError("not the name of a packed adapter", found=file, expected=f"…{SUFFIX}")
        return cls(file, _read(file, banks)[1])

    @classmethod
    def parse(cls, path: str) -> Pinned | None:
        """Return what `path` says, or None if it is no path of a packed adapter.

        Raises:
            VbfmtError: it names a packed adapter without a digest.
        """
        match = _PINNED.fullmatch(path)
        if match is not None:
            return cls(match["file"], match["digest"])
        if not path.endswith(SUFFIX):
            return None
        raise ConfigError(
            "the path of a packed adapter needs its digest in vLLM",
            found=path,
            expected=str(cls.of(path)),
            advice="without it, a replaced adapter would share cached results with the older one",
        )

    def __str__(self) -> str:
        return f"{self.file}@{self.digest}"

    def load(self, *, banks: Sources | None = None) -> Adapter:
        """Read and check the adapter. Nothing that happens to the file later matters.

        Raises:
            VbfmtError: the file is damaged, another one, or cannot be read.
        """
        return _read(self.file, banks, self.digest)[0]


def _read(file: str, banks: Sources | None, digest: str | None = None) -> tuple[Adapter, str]:
    try:
        size = os.stat(file).st_size
    except OSError as error:
        raise storage.refusal("cannot read", file, error) from None
    if size > LARGEST:
        raise StorageError(
            "too large to be served", file=file, found=f"{size} bytes", expected=f"≤ {LARGEST}"
        )
    return load_with_digest(file, digest=digest, mmap=False, banks=banks)
