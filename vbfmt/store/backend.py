"""The interface of a store's backend: a folder, or a bucket of an object store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from vbfmt._format.container import Bytes


@dataclass(frozen=True)
class Found:
    """A small object that changes: names, leases, marks.

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
        key: as in `vbfmt.store.layout`.
        size: bytes.
        modified: seconds since 1970.
        version: changes whenever the object is written again.
    """

    key: str
    size: int
    modified: float
    version: str


class Backend(Protocol):
    """Keys and bytes. Whatever fails is a `StorageError`; nothing is ever half-written."""

    @property
    def where(self) -> str:
        """The store, for messages."""
        ...

    def address(self, key: str) -> str:
        """A key, for messages."""
        ...

    def file(self, key: str) -> str:
        """A path on this machine from which the object at `key` can be read, now and as long as it
        is in the store.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def content(self, key: str) -> Bytes | None:
        """The object at `key`, None if there is none. It may be mapped."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is an object at `key`."""
        ...

    def create(self, key: str, pieces: Iterable[Bytes]) -> bool:
        """Write an object where none is; False if there is one."""
        ...

    def found(self, key: str) -> Found | None:
        """A small object with its version, None if there is none."""
        ...

    def replace(self, key: str, content: bytes, version: str) -> bool:
        """Write a small object over the one of that version; False if there is another or none."""
        ...

    def remove(self, key: str, version: str) -> bool:
        """Remove a small object of that version; False if there is another or none."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        ...

    def entries(self, prefix: str) -> Iterator[Stored]:
        """All objects whose keys begin with ``prefix/``."""
        ...

    def tidy(self) -> None:
        """Remove what killed writers have left half-written."""
        ...

    def stamps(self, prefix: str) -> dict[str, str | None]:
        """The groups of keys that make up ``prefix/``, each with something that changes whenever a
        key of the group comes, goes or is written again; None where that is unknown."""
        ...
