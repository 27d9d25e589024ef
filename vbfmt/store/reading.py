"""Read from a store: adapters, names and entries."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from vbfmt._format.container import Bytes
from vbfmt._similar import nearest
from vbfmt.adapter import Adapter
from vbfmt.errors import StoreError, UnknownError, VbfmtError, in_file
from vbfmt.packed import loads
from vbfmt.store import garbage, layout, leases
from vbfmt.store import names as records
from vbfmt.store.backend import Backend
from vbfmt.store.catalog import Catalog
from vbfmt.store.folder import Folder
from vbfmt.store.query import Query
from vbfmt.store.rows import Entry


class Reader:
    """The methods of a store that read or lease adapters.

    Args:
        catalog_path: path of the catalog, which is opened when first needed.
    """

    def __init__(self, backend: Backend, catalog_path: str) -> None:
        self._backend = backend
        self._catalog_path = catalog_path
        self._catalog: Catalog | None = None
        self._opening = threading.Lock()

    def __repr__(self) -> str:
        return f"<vbfmt store {self._backend.where}>"

    def close(self) -> None:
        """Close the catalog. It is opened again when needed."""
        with self._opening:
            if self._catalog is not None:
                self._catalog.close()

    def resolve(self, name: str) -> str:
        """Return the digest that a name points to. Return a digest itself if the store has it.

        Raises:
            UnknownError: there is no such name or digest. The message suggests similar names.
            StoreError: `name` is neither a valid name nor a valid digest.
        """
        if layout.is_like_digest(name):
            if not self._backend.exists(layout.adapter_key(name)):
                raise self._missing(name)
            return name
        found = records.read(self._backend, name)
        if found is None or found[0].name != name:
            raise self._unknown(name, found)
        return found[0].digest

    def find(self, name: str) -> str | None:
        """Return the digest that a name points to, or None if there is no such name.

        Use it for names from untrusted clients: it takes the same short time for every name.

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
        """Return the path of an adapter's file, which has no bank in it. Load it with
        ``banks=store``.

        The file never changes. It stays as long as a name or a lease points to the adapter, and for
        the grace period after that.

        Raises:
            UnknownError: the store has no adapter with this digest.
        """
        try:
            return self._backend.file(layout.adapter_key(digest))
        except FileNotFoundError:
            raise self._missing(digest) from None

    def open(self, name: str, *, verify: bool = True) -> Adapter:
        """Load the adapter with a name or digest. Adapters with the same bank share one array.

        Args:
            verify: as in `vbfmt.load`.

        Raises:
            UnknownError: the store has no such name or digest.
            BankError: the store does not have its bank.
            VbfmtError: the file is damaged.
        """
        digest = self.resolve(name)
        key = layout.adapter_key(digest)
        content = self._backend.content(key)
        if content is None:
            raise self._missing(digest)
        with in_file(self._backend.address(key)):
            return loads(content, digest=digest, verify=verify, banks=self)

    def read(self, sha256: str, length: int) -> Bytes | None:
        """Return the unchecked bytes of a bank. This makes a store a valid value of ``banks=``."""
        content = self._backend.content(layout.bank_key(sha256))
        return content if content is None or len(content) != length else bytes(content)

    def where(self, sha256: str) -> str:
        """Return the path or address of a bank, for messages."""
        return self._backend.address(layout.bank_key(sha256))

    def lease(self, name: str, *, seconds: float = leases.SECONDS) -> leases.Lease:
        """Lease the adapter with a name or digest, so that it is not removed until the lease
        expires.

        >>> with store.lease("alice") as lease:
        ...     adapter = store.open(lease.digest)

        Raises:
            UnknownError: the store has no such name or digest.
        """
        digest = self.resolve(name)
        lease = leases.Lease(self._backend, digest, seconds)
        if not garbage.revive(self._backend, layout.adapter_key(digest)):
            lease.close()
            raise self._missing(digest)
        return lease

    def names(self) -> dict[str, str]:
        """Return all names, each with its digest.

        Warns:
            VbfmtWarning: a name's record is damaged; the name is left out.
        """
        return self._current().names()

    def entries(
        self,
        *,
        base_model: str | None = None,
        bank: str | None = None,
        metadata: Mapping[str, str] | None = None,
        added_since: float | None = None,
        limit: int | None = None,
        damaged: list[VbfmtError] | None = None,
    ) -> list[Entry]:
        """Return the catalog's entries that meet all given conditions, the newest first.

        Args:
            base_model: name of the base model, as the adapter records it.
            bank: SHA-256 of the bank, 64 hexadecimal digits.
            metadata: metadata that the adapter must have.
            added_since: earliest time when the adapter was added, in seconds since 1970.
            limit: maximum number of entries.
            damaged: a list for the errors of damaged adapters and names. They are in no entry.

        Warns:
            VbfmtWarning: an adapter or a name is damaged, and `damaged` is not given.

        Raises:
            StoreError: `bank` is not a SHA-256, or the catalog cannot be used.
        """
        if bank is not None:
            layout.require_sha256(bank)
        query = Query(base_model, bank, metadata, added_since, limit)
        return self._current(damaged).entries(query)

    def _open_catalog(self) -> Catalog:
        with self._opening:
            if self._catalog is None:
                self._catalog = Catalog(
                    self._backend, self._catalog_path, shared=isinstance(self._backend, Folder)
                )
            return self._catalog

    def _current(self, damaged: list[VbfmtError] | None = None) -> Catalog:
        catalog = self._open_catalog()
        catalog.refresh(damaged)
        return catalog

    def _missing(self, digest: str) -> UnknownError:
        return UnknownError(
            "no such adapter",
            file=self._backend.where,
            found=digest,
            advice="list the adapters: vbfmt store list",
        )

    def _unknown(self, name: str, found: tuple[records.Name, str] | None) -> UnknownError:
        near = [found[0].name] if found else nearest(name, _similar(self.names(), name))
        return UnknownError(
            "no adapter with that name",
            file=self._backend.where,
            part=name,
            expected=f"a name in the store, such as {', '.join(near)}" if near else None,
            advice=None if near else "list them: vbfmt store list",
        )


_MOST_COMPARED = 5000


def _similar(known: Mapping[str, str], name: str) -> list[str]:
    """Return some names to compare with `name`. Comparing a million names would take minutes."""
    start = name[:2].lower()
    alike = [one for one in known if one.lower().startswith(start)]
    return (alike or list(known))[:_MOST_COMPARED]
