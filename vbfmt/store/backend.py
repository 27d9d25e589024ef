"""The interface of a store's backend: a folder, or a bucket of an object store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from vbfmt._format.container import Bytes


@dataclass(frozen=True)
class Found:
    """The content and version of a small object that may change: a name, a lease or a mark.

    Attributes:
        content: its bytes.
        version: changes whenever the content is written again.
    """

    content: bytes
    version: str


@dataclass(frozen=True)
class Stored:
    """An entry of a listing.

    Attributes:
        key: its key; see `vbfmt.store.layout`.
        size: its length in bytes.
        modified: time of its last change, in seconds since 1970.
        version: changes whenever the object is written again.
    """

    key: str
    size: int
    modified: float
    version: str


class Backend(Protocol):
    """Objects as bytes, by key.

    Failures raise `StorageError`. An object is written whole or not at all.
    """

    @property
    def where(self) -> str:
        """The address of the store, for messages."""
        ...

    def address(self, key: str) -> str:
        """Return the address of an object, for messages."""
        ...

    def file(self, key: str) -> str:
        """Return a local path of the object at `key`. The path is valid while the store has the
        object.

        Raises:
            FileNotFoundError: there is no such object.
        """
        ...

    def content(self, key: str) -> Bytes | None:
        """Return the object at `key`, possibly memory-mapped, or None if there is none."""
        ...

    def exists(self, key: str) -> bool:
        """Return whether there is an object at `key`."""
        ...

    def create(self, key: str, pieces: Iterable[Bytes]) -> bool:
        """Write a new object. Return False if there is already one at `key`."""
        ...

    def found(self, key: str) -> Found | None:
        """Return a small object with its version, or None if there is none."""
        ...

    def replace(self, key: str, content: bytes, version: str) -> bool:
        """Replace a small object if it still has this version. Return whether it was replaced."""
        ...

    def remove(self, key: str, version: str) -> bool:
        """Remove a small object if it still has this version. Return whether it was removed."""
        ...

    def discard(self, key: str, mark: str, content: bytes) -> bool:
        """Remove an object and its mark if the mark has this content. Return whether they were
        removed."""
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
        None if it cannot be determined.
        """
        ...


def has_content(backend: Backend, key: str, content: bytes) -> bool:
    """Return whether a small object exists and has this content."""
    found = backend.found(key)
    return found is not None and found.content == content
