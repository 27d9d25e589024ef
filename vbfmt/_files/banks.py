"""Read and write external vector banks: files with the raw 4·h·b bytes, named by their SHA-256.

All adapters of a process that have the same bank share one array.
"""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import PathLike, storage
from vbfmt._format.container import Bytes, Section
from vbfmt.errors import BankError, ChecksumError

ENDING = ".bank"
FOLDER = "banks"


class Source(Protocol):
    """A source of banks: a folder, or a store."""

    def read(self, sha256: str, length: int) -> Bytes | None:
        """Return the unchecked bytes of the bank with a SHA-256 (64 hexadecimal digits), or None.

        The caller refuses a bank that does not have `length` bytes, so a longer one need not be
        read completely.
        """
        ...

    def where(self, sha256: str) -> str:
        """Return the path or address that the bank would have, for messages."""
        ...


Sources = PathLike | Source | Sequence["PathLike | Source"]
"""The values of ``banks=``: a folder, a store, or several, searched in order."""


def file_name(sha256: str) -> str:
    """Return ``<64 hexadecimal digits>.bank``."""
    return sha256 + ENDING


@dataclass(frozen=True)
class Folder:
    """A folder with banks."""

    path: str

    def read(self, sha256: str, length: int) -> Bytes | None:
        """See `Source.read`."""
        path = self.where(sha256)
        if not os.path.exists(path):
            return None
        mapped = storage.read(path, mmap=True)
        return mapped if len(mapped) != length else bytes(mapped)

    def where(self, sha256: str) -> str:
        """See `Source.where`."""
        return os.path.join(self.path, file_name(sha256))


def sources(given: Sources | None, adapter: PathLike | None = None) -> list[Source]:
    """Return the given sources in order, then the adapter's folder and its subfolder ``banks``."""
    several: Iterable[PathLike | Source]
    if given is None:
        several = ()
    elif isinstance(given, Sequence) and not isinstance(given, str):
        several = given
    else:
        several = (given,)
    found: list[Source] = [
        Folder(os.fspath(one)) if isinstance(one, str | os.PathLike) else one for one in several
    ]
    if adapter is not None:
        beside = os.path.dirname(os.fspath(adapter))
        found += [Folder(beside), Folder(os.path.join(beside, FOLDER))]
    return found


def array(
    section: Section, h: int, b: int, where: Sequence[Source], *, shared: bool = True
) -> NDArray[np.float32]:
    """Return the bank that a header describes: (h, b) float32, read-only.

    Args:
        section: the bank's entry in the header.
        h, b: number and length of the vectors.
        where: sources to search, in order. The first bank found must have the right content.
        shared: return the array that all callers in this process share. Otherwise read and check
            the bank again, into a new array.

    Raises:
        BankError: the bank was not found.
        ChecksumError: a file with the bank's name has other content.
        StorageError: the bank cannot be read.
    """
    key = (section.sha256, h, b)
    if shared:
        with _lock:
            known = _shared.get(key)
        if known is not None:
            return known
    content, _ = _found(section.sha256.hex(), section.length, where)
    bank = np.frombuffer(content, dtype="<f4").reshape(h, b)
    bank.flags.writeable = False
    if not shared:
        return bank
    with _lock:
        return _shared.setdefault(key, bank)


def located(sha256: str, length: int, where: Sequence[Source]) -> str:
    """Check the content of the bank with this SHA-256, and return its path.

    Raises:
        BankError, ChecksumError, StorageError: as for `array`.
    """
    return _found(sha256, length, where)[1]


def _found(sha256: str, length: int, where: Sequence[Source]) -> tuple[Bytes, str]:
    for source in where:
        content = source.read(sha256, length)
        if content is not None:
            require_intact(content, sha256, length, source.where(sha256))
            return content, source.where(sha256)
    raise BankError(
        "vector bank not found",
        part="bank",
        found="none in " + (", ".join(_folder(one, sha256) for one in where) or "any folder"),
        expected=file_name(sha256),
        advice="put it beside the adapter, or give its folder: `banks=FOLDER`",
    )


def _folder(source: Source, sha256: str) -> str:
    return os.path.dirname(source.where(sha256)) or os.curdir


def require_intact(content: Bytes, sha256: str, length: int, file: str) -> None:
    """Check the bytes of a bank.

    Raises:
        ChecksumError: the length or the SHA-256 is wrong.
    """
    wrong = None
    if len(content) != length:
        wrong = f"{len(content)} bytes", f"{length} bytes"
    elif (found := hashlib.sha256(content).hexdigest()) != sha256:
        wrong = f"SHA-256 {found[:16]}…", f"{sha256[:16]}…"
    if wrong is not None:
        raise ChecksumError(
            "not the vector bank that the adapter needs",
            file=file,
            part="bank",
            found=wrong[0],
            expected=wrong[1],
            advice="fetch the bank again",
        )


def write(content: Bytes, folder: PathLike, *, overwrite: bool = False) -> str:
    """Write a bank under its name, durably. An existing bank is checked and kept.

    Args:
        overwrite: replace an existing bank that is damaged.

    Returns:
        The path of the bank.

    Raises:
        ChecksumError: the existing bank is damaged, and `overwrite` is not set.
        StorageError: the bank could not be written.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    path = os.path.join(os.fspath(folder), file_name(sha256))
    if os.path.lexists(path):
        try:
            require_intact(storage.read(path, mmap=True), sha256, len(content), path)
        except ChecksumError:
            if not overwrite:
                raise
        else:
            return path
    with storage.refusing("cannot write", folder):
        os.makedirs(folder or os.curdir, exist_ok=True)
    storage.write(path, [content], overwrite=True)
    return path


_lock = threading.Lock()
_shared: weakref.WeakValueDictionary[tuple[bytes, int, int], NDArray[Any]] = (
    weakref.WeakValueDictionary()
)
