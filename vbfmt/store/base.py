"""`Store`: adapters by name and digest."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vbfmt._files import banks as bank_files
from vbfmt._files import sound, storage
from vbfmt._files.banks import Source, Sources
from vbfmt._format.container import Bytes
from vbfmt._format.packed_file import PackedFile
from vbfmt._similar import nearest
from vbfmt.adapter import Adapter
from vbfmt.errors import BankError, StoreError, UnknownError, VbfmtError, VersionError
from vbfmt.packed import Report, dumps, loads
from vbfmt.store import catalog as catalogs
from vbfmt.store import garbage, layout, leases, s3
from vbfmt.store import names as records
from vbfmt.store.backend import Backend, Stored
from vbfmt.store.catalog import Catalog, Entry
from vbfmt.store.folder import Folder

PathLike = str | os.PathLike[str]

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


@dataclass(frozen=True)
class Collected:
    """What a collection did.

    Attributes:
        removed: keys of the objects that were removed.
        bytes: of them.
        waiting: objects that nothing needs, but not for long enough yet.
        kept: objects that are needed.
    """

    removed: tuple[str, ...]
    bytes: int
    waiting: int
    kept: int


class Store:
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
        self._backend, self._catalog_path = _backend(os.fspath(path), cache)
        self._catalog: Catalog | None = None
        _require_store(self._backend, create=create)

    def __repr__(self) -> str:
        return f"<vbfmt store {self._backend.where}>"

    def __reduce__(self) -> tuple[Any, ...]:
        path, cache = self._arguments
        return _reopened, (path, cache)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the catalog. The store can be used on; it is opened again."""
        if self._catalog is not None:
            self._catalog.close()
            self._catalog = None

    # Reading

    def resolve(self, name: str) -> str:
        """The digest that a name points to; a digest is taken as it is, if it is there.

        Raises:
            UnknownError: no such name or digest; the message names the nearest.
            StoreError: not a name.
        """
        if layout.is_digest(name):
            if not self._backend.exists(layout.adapter_key(name)):
                raise UnknownError("no such adapter", file=self._backend.where, found=name)
            return name
        found = records.read(self._backend, name)
        if found is None or found[0].name != name:
            raise self._unknown(name, found)
        return found[0].digest

    def find(self, name: str) -> str | None:
        """Return the digest that a name points to, None if there is no such name.

        For names that strangers choose: it takes the same short time for any of them.

        Raises:
            StoreError: the name's record is damaged.
        """
        try:
            layout.require_name(name)
        except StoreError:
            return None
        found = records.read(self._backend, name)
        return found[0].digest if found is not None and found[0].name == name else None

    def path(self, digest: str) -> str:
        """The path of an adapter's file, without its bank: load it with ``banks=store``.

        The file never changes. It stays as long as a name or a lease points to the adapter, and for
        the time of grace after that.

        Raises:
            UnknownError: no such digest.
        """
        try:
            return self._backend.file(layout.adapter_key(digest))
        except FileNotFoundError:
            raise UnknownError("no such adapter", file=self._backend.where, found=digest) from None

    def open(self, name: str, *, verify: bool = True) -> Adapter:
        """The adapter of a name or digest. Adapters with one bank share one array.

        Args:
            verify: as in `vbfmt.load`.

        Raises:
            UnknownError: no such name or digest.
            BankError: its bank is not in the store.
            VbfmtError: damage; the message names the file.
        """
        digest = self.resolve(name)
        key = layout.adapter_key(digest)
        content = self._backend.content(key)
        if content is None:
            raise UnknownError("no such adapter", file=self._backend.where, found=digest)
        try:
            return loads(content, digest=digest, verify=verify, banks=self)
        except VbfmtError as error:
            raise error.in_file(self._backend.address(key)) from None

    def read(self, sha256: str, length: int) -> Bytes | None:
        """The bytes of a bank, unchecked: a store is a source of banks, for ``banks=``."""
        content = self._backend.content(layout.bank_key(sha256))
        return content if content is None or len(content) != length else bytes(content)

    def where(self, sha256: str) -> str:
        """Where a bank is, for messages."""
        return self._backend.address(layout.bank_key(sha256))

    def lease(self, name: str, *, seconds: float = leases.SECONDS) -> leases.Lease:
        """Hold the adapter of a name or digest: it is not collected as long as the lease lasts.

        >>> with store.lease("alice") as lease:
        ...     adapter = store.open(lease.digest)

        Raises:
            UnknownError: no such name or digest.
        """
        digest = self.resolve(name)
        lease = leases.Lease(self._backend, digest, seconds)
        if not garbage.revive(self._backend, layout.adapter_key(digest)):
            lease.close()
            raise UnknownError("no such adapter", file=self._backend.where, found=digest)
        return lease

    def names(self) -> dict[str, str]:
        """All names and the digests that they point to."""
        return self._current().names()

    def entries(
        self,
        *,
        base_model: str | None = None,
        bank: str | None = None,
        metadata: Mapping[str, str] | None = None,
        added_since: float | None = None,
        limit: int | None = None,
    ) -> list[Entry]:
        """The adapters of which all that is given holds, newest first; from the catalog.

        Args:
            base_model: as the adapter names it.
            bank: SHA-256 of its bank, 64 hexadecimal digits.
            metadata: texts that it must have.
            added_since: seconds since 1970.
            limit: no more than so many.
        """
        return self._current().entries(
            base_model=base_model,
            bank=bank,
            metadata=metadata,
            added_since=added_since,
            limit=limit,
        )

    # Writing

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
            self._open_catalog().add(digest, stored, packed)
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

    # Keeping

    def verify(self) -> Iterator[Report]:
        """Check every object and every name, one report each.

        A report's `file` is the object's path or address, or ``name …``.
        """
        for prefix in (layout.BANKS, layout.ADAPTERS):
            for stored in self._backend.entries(prefix):
                yield self._verified(stored.key)
        for stored in self._backend.entries(layout.NAMES):
            found = self._backend.found(stored.key)
            if found is not None:
                yield self._verified_name(found, self._backend.address(stored.key))

    def gc(self, *, grace: float = garbage.GRACE) -> Collected:
        """Remove what nothing has needed for `grace` seconds.

        The first run that finds an object unneeded only notes the time. Names, leases that have not
        ended, and for banks the adapters that are there, are what needs an object.

        Args:
            grace: 0 removes at once. Only do that where nobody reads or writes.

        Raises:
            StoreError: a name or a lease is damaged: then nothing is removed.
        """
        removed: dict[str, int] = {}
        # Without grace the banks of the adapters that were removed go at once, too.
        for _ in range(1 if grace > 0 else 2):
            now = time.time()
            unneeded = self._mark(now)
            for key, size in unneeded.items():
                if garbage.claim(self._backend, key, now - grace, now):
                    self._open_catalog().forget(key)
                    garbage.remove(self._backend, key)
                    removed[key] = size
        self._backend.tidy()
        waiting = len(unneeded.keys() - removed.keys())
        adapters, _, banks, *_ = self._current().totals()
        return Collected(tuple(removed), sum(removed.values()), waiting, adapters + banks - waiting)

    def stats(self) -> Stats:
        """How much there is."""
        adapters, adapter_bytes, banks, bank_bytes, named = self._current().totals()
        marks = sum(1 for _ in self._backend.entries(layout.UNREFERENCED))
        return Stats(adapters, adapter_bytes, banks, bank_bytes, named, marks)

    def rebuild(self) -> None:
        """Make the catalog anew from the objects."""
        self._open_catalog().rebuild()

    def _mark(self, now: float) -> dict[str, int]:
        """Note what nothing needs; keys and sizes of it."""
        needed = {layout.adapter_key(one.digest) for one in records.every(self._backend)}
        needed |= {layout.adapter_key(digest) for digest in leases.held(self._backend, now)}
        current = self._current()
        unneeded = {}
        for stored in self._backend.entries(layout.ADAPTERS):
            if layout.digest_of(stored.key) and stored.key not in needed:
                unneeded[stored.key] = stored.size
        banks = {layout.bank_key(sha256) for sha256 in current.banks_needed()}
        for stored in self._backend.entries(layout.BANKS):
            if layout.bank_of(stored.key) and stored.key not in banks:
                unneeded[stored.key] = stored.size
        for key in unneeded:
            garbage.note_unneeded(self._backend, key, now)
        for entry in self._backend.entries(layout.UNREFERENCED):
            garbage.tidy(self._backend, entry.key.removeprefix(f"{layout.UNREFERENCED}/"))
        return unneeded

    def _sound(self, source: Adapter | PathLike, banks: Sources | None) -> tuple[PackedFile, Bytes]:
        if isinstance(source, Adapter):
            return PackedFile.parse(dumps(source)), source.bank.reshape(-1).view("u1").data
        given = bank_files.sources(banks, source)
        own: list[Source] = [self]
        try:
            data = storage.read(source, mmap=False)
            return sound.check(data, given + own)
        except VbfmtError as error:
            raise error.in_file(source) from None

    def _keep(self, key: str, pieces: list[Bytes]) -> bool:
        """See that an object is there; whether it had to be written."""
        if garbage.revive(self._backend, key):
            return False
        return self._backend.create(key, pieces)

    def _renew(self, name: str) -> records.Name | None:
        """What a name points to; should it be needed no longer, its time of grace begins then."""
        try:
            found = records.read(self._backend, name)
        except StoreError:  # damaged; `replaces=ANY` mends it
            return None
        if found is None:
            return None
        garbage.revive(self._backend, layout.adapter_key(found[0].digest))
        return found[0]

    def _verified(self, key: str) -> Report:
        where, digest, sha256 = self._backend.address(key), layout.digest_of(key), None
        problems: list[VbfmtError] = []
        content = self._backend.content(key)
        try:
            if content is None:
                return Report(where, digest, ())  # collected in this moment
            if digest is not None:
                loads(content, digest=digest, banks=_Anew(self))
            elif (sha256 := layout.bank_of(key)) is not None:
                bank_files.require_sound(content, sha256, len(content), where)
            else:
                raise StoreError("no object of a store", file=where, advice="remove it")
        except VbfmtError as error:
            problems.append(error.in_file(where))
        return Report(where, digest, tuple(problems))

    def _verified_name(self, found: Any, where: str) -> Report:
        try:
            one = records.parse(found, where)
        except StoreError as error:
            return Report(where, None, (error,))
        problem = UnknownError(
            "a name points to an adapter that is not there",
            file=where,
            part=f"name {one.name}",
            found=one.digest,
            advice="add it again, or remove the name",
        )
        there = self._backend.exists(layout.adapter_key(one.digest))
        return Report(f"name {one.name}", one.digest, () if there else (problem,))

    def _open_catalog(self) -> Catalog:
        if self._catalog is None:
            self._catalog = Catalog(
                self._backend, self._catalog_path, shared=isinstance(self._backend, Folder)
            )
        return self._catalog

    def _current(self) -> Catalog:
        catalog = self._open_catalog()
        catalog.refresh()
        return catalog

    def _unknown(self, name: str, found: tuple[records.Name, str] | None) -> UnknownError:
        near = [found[0].name] if found else nearest(name, _similar(self.names(), name))
        return UnknownError(
            "no adapter of that name",
            file=self._backend.where,
            found=name,
            expected=f"one of those that are there, such as {', '.join(near)}" if near else None,
            advice=None if near else "list them: vbfmt store list",
        )


class _Anew:
    """The banks of a store, read anew each time and never shared."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, sha256: str, length: int) -> Bytes | None:
        return self._store.read(sha256, length)

    def where(self, sha256: str) -> str:
        return self._store.where(sha256)


_MOST_COMPARED = 5000


def _similar(known: Mapping[str, str], name: str) -> list[str]:
    """Names that it pays to compare with: comparing each of a million would take minutes."""
    start = name[:2].lower()
    alike = [one for one in known if one.lower().startswith(start)]
    return (alike or list(known))[:_MOST_COMPARED]


def _backend(path: str, cache: PathLike | None) -> tuple[Backend, str]:
    """The backend, and where its catalog is."""
    if path.startswith(s3.SCHEME):
        folder = s3.cache_folder(path, cache)
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise storage.refusal("cannot write", folder, error) from None
        return s3.Bucket(path, folder), os.path.join(folder, catalogs.FILE)
    return Folder(path), os.path.join(path, catalogs.FILE)


def _require_store(backend: Backend, *, create: bool) -> None:
    found = backend.found(layout.ROOT)
    if found is None:
        if not create:
            raise StoreError(
                "not a vbfmt store",
                file=backend.where,
                found=f"no {layout.ROOT}",
                advice="make one: vbfmt store add",
            )
        if any(True for _ in backend.entries("")):
            raise StoreError(
                "not a vbfmt store, and not empty",
                file=backend.where,
                advice="choose a new folder",
            )
        backend.create(layout.ROOT, [json.dumps({"vbfmt store": layout.VERSION}).encode()])
        found = backend.found(layout.ROOT)
        assert found is not None
    try:
        version = json.loads(found.content)["vbfmt store"]
        assert isinstance(version, int)
    except (ValueError, TypeError, KeyError, AssertionError):
        raise StoreError(
            "not a vbfmt store", file=backend.address(layout.ROOT), found=repr(found.content[:60])
        ) from None
    if version > layout.VERSION:
        raise VersionError(
            "the store is of a newer layout",
            file=backend.where,
            found=version,
            expected=f"at most {layout.VERSION}",
            advice="update vbfmt",
        )


def _reopened(path: str, cache: PathLike | None) -> Store:
    return Store(path, cache=cache)


__all__ = ["ANY", "BankError", "Collected", "Entry", "Stats", "Store"]
