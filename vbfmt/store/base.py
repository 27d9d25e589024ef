"""`Store`: adapters by name and digest."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vbfmt._files import banks as bank_files
from vbfmt._files import storage, verified
from vbfmt._files.banks import Source, Sources
from vbfmt._format.container import Bytes
from vbfmt._format.packed_file import PackedFile
from vbfmt.adapter import Adapter
from vbfmt.errors import StoreError, UnknownError, VbfmtError
from vbfmt.packed import Report, in_memory
from vbfmt.store import collection, garbage, layout, verification
from vbfmt.store import names as records
from vbfmt.store.backend import Stored
from vbfmt.store.collection import Collected
from vbfmt.store.opening import PathLike, backend_at, require_store
from vbfmt.store.reading import Reader
from vbfmt.store.rows import Entry

ANY = "any"
"""For `Store.tag`: replace whatever the name points to."""


@dataclass(frozen=True)
class Stats:
    """What a store holds.

    Attributes:
        adapters, banks, names: how many.
        adapter_bytes, bank_bytes: together.
        unreferenced: objects that a collection has found to be needed by nothing.
    """

    adapters: int
    adapter_bytes: int
    banks: int
    bank_bytes: int
    names: int
    unreferenced: int


class Store(Reader):
    """Adapters and their banks, each once, by digest; names that point to them.

    Objects never change. What is added is checked first, and its bank is kept apart, so that
    adapters share it. All methods may be called from several threads, processes and machines.

    Args:
        path: a folder, or ``s3://bucket/prefix``.
        create: make a store where there is nothing, or an empty folder.
        cache: for S3, a folder on this machine for the catalog and for objects in use.

    Raises:
        StoreError: there is no store.
        VersionError: it is of a newer layout.
    """

    def __init__(
        self, path: PathLike, *, create: bool = False, cache: PathLike | None = None
    ) -> None:
        self._arguments: tuple[Any, ...] = (os.fspath(path), cache)
        backend, catalog_path = backend_at(os.fspath(path), cache)
        super().__init__(backend, catalog_path)
        require_store(backend, create=create)

    def __reduce__(self) -> tuple[Any, ...]:
        path, cache = self._arguments
        return _reopened, (path, cache)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(
        self,
        source: Adapter | PathLike,
        *,
        name: str | None = None,
        replaces: str | None = None,
        banks: Sources | None = None,
    ) -> str:
        """Add an adapter, and give it a name.

        Args:
            source: an adapter, or a packed file in either form, which is checked whole.
            name: to point to it; see `tag`.
            replaces: what that name points to now, as in `tag`.
            banks: where to look for the file's bank, besides beside it and in this store.

        Returns:
            its digest.

        Raises:
            ConflictError: the name is taken; the adapter is in the store without it.
            VbfmtError: the file is not sound.
            StorageError: the operating system or the object store refused.
        """
        if name is not None:
            layout.require_name(name)
        packed, bank = self._sound(source, banks)
        digest, sha256 = packed.digest, packed.bank.sha256.hex()
        self._keep(layout.bank_key(sha256), [bank])
        key = layout.adapter_key(digest)
        pieces = list(packed.thin_pieces())
        if self._keep(key, pieces):
            now = time.time()
            stored = Stored(key, sum(map(len, pieces)), now, "")
            self._open_catalog().add(digest, stored, packed.header)
        if name is not None:
            self.tag(name, digest, replaces=replaces)
        return digest

    def tag(self, name: str, digest: str, *, replaces: str | None = None) -> None:
        """Let a name point to an adapter.

        Args:
            name: parts of letters, digits and ``. _ - + @`` with ``/`` between them.
            digest: of an adapter in the store.
            replaces: the digest that the name points to now; None if it must be new (or points to
                `digest` already); `ANY` for whatever it is.

        Raises:
            ConflictError: it points elsewhere, or differs only in case from one that is there.
            UnknownError: no such digest.
            StoreError: not a name, or not a digest.
        """
        layout.require_name(name)
        if not garbage.revive(self._backend, layout.adapter_key(digest)):
            raise UnknownError("no such adapter", file=self._backend.where, found=digest)
        before = self._renew(name)
        if replaces == ANY:
            records.overwrite(self._backend, name, digest)
        elif replaces is not None or before != records.Name(name, digest):
            records.write(self._backend, name, digest, replaces)
        self._open_catalog().add_name(name, digest)

    def untag(self, name: str, *, expected: str | None = None) -> None:
        """Remove a name. What it pointed to stays until it is collected.

        Args:
            expected: the digest that it must point to.

        Raises:
            UnknownError: no such name.
            ConflictError: it points elsewhere.
        """
        layout.require_name(name)
        before = self._renew(name)
        if before is None or before.name != name:
            raise self._unknown(name, None)
        self._open_catalog().forget(layout.name_key(name))
        records.remove(self._backend, name, expected)

    def verify(self) -> Iterator[Report]:
        """Check every object and every name, one report each.

        A report's `file` is the object's path or address, or ``name …``.
        """
        return verification.reports(self._backend, self)

    def gc(self, *, grace: float = garbage.GRACE) -> Collected:
        """Remove what nothing has needed for `grace` seconds.

        The first run that finds an object unneeded only notes the time. Names, leases that have not
        ended, and for banks the adapters that are there, are what needs an object.

        Args:
            grace: 0 removes at once. Use it only while no other process uses the store.

        Raises:
            StoreError: a name or a lease is damaged: then nothing is removed.
        """
        return collection.collect(self._backend, self._open_catalog(), grace)

    def stats(self) -> Stats:
        """How much there is."""
        adapters, adapter_bytes, banks, bank_bytes, named = self._current().totals()
        marks = sum(1 for _ in self._backend.entries(layout.UNREFERENCED))
        return Stats(adapters, adapter_bytes, banks, bank_bytes, named, marks)

    def rebuild(self) -> None:
        """Make the catalog anew from the objects."""
        self._open_catalog().rebuild()

    def _sound(self, source: Adapter | PathLike, banks: Sources | None) -> tuple[PackedFile, Bytes]:
        if isinstance(source, Adapter):
            return in_memory(source), source.bank.reshape(-1).view("u1").data
        given = bank_files.sources(banks, source)
        own: list[Source] = [self]
        try:
            data = storage.read(source, mmap=False)
            return verified.check(data, given + own)
        except VbfmtError as error:
            raise error.in_file(source) from None

    def _keep(self, key: str, pieces: list[Bytes]) -> bool:
        """See that an object is there; whether it had to be written."""
        if garbage.revive(self._backend, key):
            return False
        return self._backend.create(key, pieces)

    def _renew(self, name: str) -> records.Name | None:
        """What a name points to; should it be needed no longer, its grace period begins then."""
        try:
            found = records.read(self._backend, name)
        except StoreError:  # damaged; `replaces=ANY` mends it
            return None
        if found is None:
            return None
        garbage.revive(self._backend, layout.adapter_key(found[0].digest))
        return found[0]


def _reopened(path: str, cache: PathLike | None) -> Store:
    return Store(path, cache=cache)


__all__ = ["ANY", "Collected", "Entry", "Stats", "Store"]
