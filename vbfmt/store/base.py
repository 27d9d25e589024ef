"""`Store`: the public class, which stores adapters by name and digest."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vbfmt._files import PathLike, storage, verified
from vbfmt._files import banks as bank_files
from vbfmt._files.banks import Source, Sources
from vbfmt._format.container import Bytes
from vbfmt._format.packed_file import PackedFile
from vbfmt.adapter import Adapter
from vbfmt.errors import ConfigError, StoreError, in_file
from vbfmt.packed import Report, in_memory
from vbfmt.store import collection, garbage, layout, verification
from vbfmt.store import names as records
from vbfmt.store.backend import Stored
from vbfmt.store.collection import Collected
from vbfmt.store.opening import backend_at, require_store
from vbfmt.store.reading import Reader
from vbfmt.store.rows import Entry

ANY = "any"
"""Value of `replaces` that allows a name to point to any digest, or to be new."""


@dataclass(frozen=True)
class Stats:
    """The number and size of a store's objects.

    Attributes:
        adapters, banks, names: number of each.
        adapter_bytes, bank_bytes: total size in bytes.
        unreferenced: number of objects that were not needed when `Store.gc` last ran.
    """

    adapters: int
    adapter_bytes: int
    banks: int
    bank_bytes: int
    names: int
    unreferenced: int


class Store(Reader):
    """Adapters and their banks, each stored once, by digest, with names that point to them.

    Objects never change. An adapter is verified before it is added. Its bank is stored separately,
    so that adapters can share it. All methods may be called from several threads, processes and
    machines.

    Args:
        path: a folder, or ``s3://bucket/prefix``.
        create: create the store if `path` does not exist or is an empty folder.
        cache: for S3, a local folder for the catalog and for objects in use.

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
        """Add an adapter, and optionally a name for it.

        Args:
            source: an adapter, or the path of a packed file, which is verified. Its bank may be
                embedded or external.
            name: the adapter's name, as in `tag`.
            replaces: as in `tag`.
            banks: folders to search for an external bank, before the file's own folder and this
                store.

        Returns:
            the digest of the adapter.

        Raises:
            ConflictError: the name is taken. Nothing is added then, unless another process takes
                the name during this call: then the adapter is added without a name.
            VbfmtError: the file is not valid.
            StorageError: the operating system or the object store reported an error.
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
        """Make a name point to an adapter.

        Args:
            name: one or more parts of letters, digits and ``. _ - + @``, separated by ``/``.
            digest: digest of an adapter in the store.
            replaces: the digest that the name must point to now; None if the name must be new or
                already point to `digest`; `ANY` to accept everything.

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
        before = None
        with contextlib.suppress(StoreError):  # its record is damaged; `replaces=ANY` repairs it
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
            StoreError: the name's record is damaged.
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
        """Remove the objects that have not been needed for `grace` seconds.

        An adapter is needed if a name or an unexpired lease points to it; a bank is needed if an
        adapter uses it. The first run that finds an object unneeded only records the time.

        Args:
            grace: seconds. With 0, objects are removed immediately; use this only while no other
                process uses the store.

        Raises:
            ConfigError: `grace` is negative or not a number.
            StoreError: a name or a lease is damaged. Nothing is removed then.
        """
        if not grace >= 0:
            raise ConfigError(
                "not a grace period", part="grace", found=grace, expected="seconds, 0 or more"
            )
        return collection.collect(self._backend, self._open_catalog(), grace)

    def stats(self) -> Stats:
        """Return the number and size of the store's objects."""
        adapters, adapter_bytes, banks, bank_bytes, named = self._current().totals()
        marks = sum(1 for _ in self._backend.entries(layout.UNREFERENCED))
        return Stats(adapters, adapter_bytes, banks, bank_bytes, named, marks)

    def rebuild(self) -> None:
        """Rebuild the catalog from the objects."""
        self._open_catalog().rebuild()

    def _verified(
        self, source: Adapter | PathLike, banks: Sources | None
    ) -> tuple[PackedFile, Bytes]:
        """Return a verified packed file and its bank."""
        if isinstance(source, Adapter):
            return in_memory(source), source.bank.reshape(-1).view("u1").data
        given = bank_files.sources(banks, source)
        own: list[Source] = [self]
        with in_file(source):
            return verified.check(storage.read(source, mmap=False), given + own)

    def _keep(self, key: str, pieces: list[Bytes]) -> bool:
        """Write an object if it is missing. Return whether it was missing."""
        if garbage.revive(self._backend, key):
            return False
        return self._backend.create(key, pieces)

    def _renew(self, name: str) -> records.Name | None:
        """Return a name's record, and restart the grace period of its adapter."""
        found = records.read(self._backend, name)
        if found is None:
            return None
        garbage.revive(self._backend, layout.adapter_key(found[0].digest))
        return found[0]


def _reopened(path: str, cache: PathLike | None) -> Store:
    return Store(path, cache=cache)


__all__ = ["ANY", "Collected", "Entry", "Stats", "Store"]
