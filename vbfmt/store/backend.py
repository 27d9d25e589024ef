"""The interface of a store's backend: a folder, or a bucket of an object store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from vbfmt._format.container import Bytes


@dataclass(frozen=True)
class Found:
    """A small object that may change (name, lease or mark), as it was read.

    Attributes:
        content: the bytes.
        version: changes whenever the content is written again.
    """

    content: bytes
    version: str


@dataclass(frozen=True)
class Stored:
    """An entry of a listing.

    Attributes:
        key: the key, see `vbfmt.store.layout`.
        size: length in bytes.
        modified: seconds since 1970.
        version: changes whenever the object is written again.
    """

    key: str
    size: int
    modified: float
    version: str


class Backend(Protocol):
    """Objects as bytes, by key. Failures are `StorageError`. Nothing is ever half-written."""

    @property
    def where(self) -> str:
        """The address of the store, for messages."""
        ...

    def address(self, key: str) -> str:
        """Return the address of an object, for messages."""
        ...

    def file(self, key: str) -> str:
        """Return a local path of the object at `key`. It is valid while the store has the object.

        Raises:
            FileNotFoundError: there is no such object.
        """
        ...

    def content(self, key: str) -> Bytes | None:
        """Return the object at `key`, perhaps mapped, or None if there is none."""
        ...

    def exists(self, key: str) -> bool:
        """Return whether there is an object at `key`."""
        ...

    def create(self, key: str, pieces: Iterable[Bytes]) -> bool:
        """Write a new object; return False if there is one at `key` already."""
        ...

    def found(self, key: str) -> Found | None:
        """Return a small object with its version, or None if there is none."""
        ...

    def replace(self, key: str, content: bytes, version: str) -> bool:
        """Replace a small object if it still has this version, and return whether it had."""
        ...

    def remove(self, key: str, version: str) -> bool:
        """Remove a small object if it still has this version, and return whether it had."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object, if it exists."""
        ...

    def entries(self, prefix: str) -> Iterator[Stored]:
        """Yield all objects whose keys begin with ``prefix/``."""
        ...

    def tidy(self) -> None:
        """Remove temporary files that killed writers have left."""
        ...

    def stamps(self, prefix: str) -> dict[str, str | None]:
        """Return the groups of keys below ``prefix/``, each with a stamp.

        The stamp changes whenever an object of the group is added, removed or written again. It is
        None if it is not known.
        """
        ...
