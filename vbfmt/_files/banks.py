"""Vector banks as objects of their own: the raw 4·h·b bytes, named by their SHA-256.

What has been read once is shared, for as long as anything uses it, by all adapters of this process.
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

from vbfmt._files import storage
from vbfmt._format.container import Bytes, Section
from vbfmt.errors import BankError, ChecksumError

PathLike = str | os.PathLike[str]

ENDING = ".bank"
FOLDER = "banks"


class Source(Protocol):
    """Where banks may be: a folder, or a store."""

    def read(self, sha256: str, length: int) -> Bytes | None:
        """The bytes of the bank of that SHA-256 (64 hexadecimal digits), unchecked; None if it is
        not there. `length` is what it must have: no more than that need be read."""
        ...

    def where(self, sha256: str) -> str:
        """Where that bank would be, for messages."""
        ...


Sources = PathLike | Source | Sequence["PathLike | Source"]
"""What ``banks=`` takes: a folder, a store, or several, looked through in order."""


def file_name(sha256: str) -> str:
    """``<64 hexadecimal digits>.bank``."""
    return sha256 + ENDING


@dataclass(frozen=True)
class Folder:
    """A folder with banks by their names."""

    path: str

    def read(self, sha256: str, length: int) -> Bytes | None:
        """As `Source.read`."""
        path = self.where(sha256)
        if not os.path.exists(path):
            return None
        mapped = storage.read(path, mmap=True)
        return mapped if len(mapped) != length else bytes(mapped)

    def where(self, sha256: str) -> str:
        """As `Source.where`."""
        return os.path.join(self.path, file_name(sha256))


def sources(given: Sources | None, adapter: PathLike | None = None) -> list[Source]:
    """Those that were given, in order; then the adapter's own folder and ``banks/`` in that."""
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
    """The bank that a header names: (h, b) float32, not writable.

    Args:
        section: the bank's entry in the header.
        where: looked through in order; what is found first must be the right one.
        shared: one array for all who ask, read once; else one of its own, read and checked now.

    Raises:
        BankError: it is nowhere.
        ChecksumError: what bears its name is not it.
        StorageError: it cannot be read.
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
    """Where the bank of that hash is; it is read and checked. Errors as `array`."""
    return _found(sha256, length, where)[1]


def _found(sha256: str, length: int, where: Sequence[Source]) -> tuple[Bytes, str]:
    for source in where:
        content = source.read(sha256, length)
        if content is not None:
            require_sound(content, sha256, length, source.where(sha256))
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


def require_sound(content: Bytes, sha256: str, length: int, file: str) -> None:
    """Check the bytes of a bank.

    Raises:
        ChecksumError: they are of another length, or do not hash to `sha256`.
    """
    advice = "fetch the bank again"
    what = "not the vector bank that the adapter needs"
    if len(content) != length:
        raise ChecksumError(
            what,
            file=file,
            part="bank",
            found=f"{len(content)} bytes",
            expected=f"{length} bytes",
            advice=advice,
        )
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ChecksumError(
            what,
            file=file,
            part="bank",
            found=f"SHA-256 {found[:16]}…",
            expected=f"{sha256[:16]}…",
            advice=advice,
        )


def write(content: Bytes, folder: PathLike, *, overwrite: bool = False) -> str:
    """Write a bank under its name, durably; one that is there already is checked and kept.

    Args:
        overwrite: replace one that is there and damaged.

    Returns:
        its path.

    Raises:
        ChecksumError: a damaged one is there, and `overwrite` is not set.
        StorageError: it could not be written.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    path = os.path.join(os.fspath(folder), file_name(sha256))
    if os.path.lexists(path):
        try:
            require_sound(storage.read(path, mmap=True), sha256, len(content), path)
        except ChecksumError:
            if not overwrite:
                raise
        else:
            return path
    _make_folder(folder)
    storage.write(path, [content], overwrite=True)
    return path


def _make_folder(path: PathLike) -> None:
    try:
        os.makedirs(path or os.curdir, exist_ok=True)
    except OSError as error:
        raise storage.refusal("cannot write", path, error) from None


_lock = threading.Lock()
_shared: weakref.WeakValueDictionary[tuple[bytes, int, int], NDArray[Any]] = (
    weakref.WeakValueDictionary()
)
