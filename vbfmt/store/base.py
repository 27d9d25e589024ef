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
from vbfmt.errors import StoreError, VbfmtError
from vbfmt.packed import Report, in_memory
from vbfmt.store import collection, garbage, layout, verification
from vbfmt.store import names as records
from vbfmt.store.backend import Stored
from vbfmt.store.collection import Collected
from vbfmt.store.opening import PathLike, backend_at, require_store
from vbfmt.store.reading import Reader
from vbfmt.store.rows import Entry

ANY = "any"
"""Value of `replaces` that allows the name to point to anything, or to be new."""


@dataclass(frozen=True)
class Stats:
    """Numbers of objects in a store, and their sizes.

    Attributes:
        adapters, banks, names: number of each.
        adapter_bytes, bank_bytes: total size in bytes.
        unreferenced: number of objects that the last `Store.gc` found unneeded.
    """

    adapters: int
    adapter_bytes: int
    banks: int
    bank_bytes: int
    names: int
    unreferenced: int


class Store(Reader):
    """Adapters and their banks, each once, by digest; names that point to them.

    Objects never change. An adapter is verified before it is added. Its bank is a separate object,
    so that adapters share it. All methods may be called from several threads, processes and
    machines.

    Args:
        path: a folder, or ``s3://bucket/prefix``.
        create: create the store if `path` does not exist or is an empty folder.
        cache: for S3, a folder on this machine for the catalog and for objects in use.

    Raises:
        StoreError: `path` is not a store.
        VersionError: the store has a newer layout.
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
        """Add an adapter, under a name if one is given.

        Args:
            source: an adapter, or a packed file in either form, which is verified.
            name: a name for it, as in `tag`.
            replaces: the digest that this name points to now, as in `tag`.
            banks: folders to search for an external bank, before the file's folder and this store.

        Returns:
            the digest of the adapter.

        Raises:
            ConflictError: the name is taken. Nothing is added, unless another process took the name
                meanwhile; then the adapter is in the store without a name.
            VbfmtError: the file is not valid.
            StorageError: the operating system or the object store refused.
        """
        if name is not None:
            layout.require_name(name)
        packed, bank = self._verified(source, banks)
        digest, sha256 = packed.digest, packed.bank.sha256.hex()
        if name is not None and replaces != ANY:
            records.require_can_point(self._backend, name, digest, replaces)
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
        """Point a name to an adapter.

        Args:
            name: parts of letters, digits and ``. _ - + @`` with ``/`` between them.
            digest: digest of an adapter in the store.
            replaces: the digest that the name points to now; None if it must be new (or points to
                `digest` already); `ANY` for any digest.

        Raises:
            ConflictError: the name points to another digest, or differs only in case from an
                existing name.
            UnknownError: the store has no adapter with this digest.
            StoreError: `name` or `digest` is not valid.
        """
        layout.require_name(name)
        if replaces is not None and replaces != ANY:
            layout.adapter_key(replaces)
        if not garbage.revive(self._backend, layout.adapter_key(digest)):
            raise self._missing(digest)
        before = self._renew(name)
        if replaces == ANY:
            records.overwrite(self._backend, name, digest)
        elif replaces is not None or before != records.Name(name, digest):
            records.write(self._backend, name, digest, replaces)
        self._open_catalog().add_name(name, digest)

    def untag(self, name: str, *, expected: str | None = None) -> None:
        """Remove a name. Its adapter stays until `gc` removes it.

        Args:
            expected: the digest that the name must point to; None for any.

        Raises:
            UnknownError: there is no such name.
            ConflictError: the name points to another digest.
        """
        layout.require_name(name)
        before = self._renew(name)
        if before is None or before.name != name:
            raise self._unknown(name, None)
        if expected not in (None, before.digest):
            raise records.conflict(self._backend, name, expected)
        self._open_catalog().forget(layout.name_key(name))
        records.remove(self._backend, name, expected)

    def verify(self) -> Iterator[Report]:
        """Check every object and every name, and yield a report of each.

        A report's `file` is the object's path or address, or ``name …``.
        """
        return verification.reports(self._backend, self)

    def gc(self, *, grace: float = garbage.GRACE) -> Collected:
        """Remove what nothing has needed for `grace` seconds.

        The first run that finds an object unneeded only notes the time. A name or a
        lease that has not expired needs its adapter, and an adapter needs its bank.

        Args:
            grace: seconds. 0 removes objects at once; use that only while no other process uses the
                store.

        Raises:
            StoreError: a name or a lease is damaged. Nothing is removed then.
        """
        return collection.collect(self._backend, self._open_catalog(), grace)

    def stats(self) -> Stats:
        """Return the numbers and sizes of objects."""
        adapters, adapter_bytes, banks, bank_bytes, named = self._current().totals()
        marks = sum(1 for _ in self._backend.entries(layout.UNREFERENCED))
        return Stats(adapters, adapter_bytes, banks, bank_bytes, named, marks)

    def rebuild(self) -> None:
        """Rebuild the catalog from the objects."""
        self._open_catalog().rebuild()

    def _verified(
        self, source: Adapter | PathLike, banks: Sources | None
    ) -> tuple[PackedFile, Bytes]:
        """Return a valid packed file, in either form, and its bank."""
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
        """Write an object if it is missing, and return whether it was."""
        if garbage.revive(self._backend, key):
            return False
        return self._backend.create(key, pieces)

    def _renew(self, name: str) -> records.Name | None:
        """Return what a name points to, and restart the grace period of that adapter."""
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
