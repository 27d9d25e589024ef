"""Remove objects that are no longer needed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from vbfmt._format.packed_file import PackedFile
from vbfmt.errors import VbfmtError, warn
from vbfmt.store import garbage, layout, leases, names
from vbfmt.store.backend import Backend, Stored
from vbfmt.store.catalog import Catalog


@dataclass(frozen=True)
class Collected:
    """The result of `vbfmt.store.Store.gc`.

    Attributes:
        removed: keys of the objects that were removed.
        bytes: total size of these objects.
        waiting: number of objects that have been unneeded for less than the grace period.
        kept: number of objects that are needed.
    """

    removed: tuple[str, ...]
    bytes: int
    waiting: int
    kept: int


def collect(backend: Backend, catalog: Catalog, grace: float) -> Collected:
    """Remove the objects that have not been needed for `grace` seconds; see `vbfmt.store.Store.gc`.

    Raises:
        StoreError: a name or a lease is damaged. Nothing is removed then.
    """
    removed: dict[str, int] = {}
    # Without a grace period, a second round also removes the banks of removed adapters.
    for _ in range(1 if grace > 0 else 2):
        now = time.time()
        unneeded = _unneeded(backend, catalog, now)
        due = [
            key
            for key, stored in unneeded.items()
            if garbage.is_due(backend, stored, now - grace, now)
        ]
        needed = _needed_after_all(backend, catalog, due)
        for key in due:
            if (
                key not in needed
                and garbage.claim(backend, key, now - grace, now)
                and garbage.remove(backend, key, now)
            ):
                catalog.forget(key)
                removed[key] = unneeded[key].size
    backend.tidy()
    waiting = len(unneeded.keys() - removed.keys())
    catalog.refresh(damaged=[])  # only `_needed_after_all` has to know of them
    adapters, _, banks, *_ = catalog.totals()
    return Collected(tuple(removed), sum(removed.values()), waiting, adapters + banks - waiting)


def _unneeded(backend: Backend, catalog: Catalog, now: float) -> dict[str, Stored]:
    """Mark the objects that are not needed, and return them by key."""
    needed = {layout.adapter_key(one.digest) for one in names.every(backend)}
    needed |= {layout.adapter_key(digest) for digest in leases.held(backend, now)}
    catalog.refresh(damaged=[])
    unneeded = {}
    for stored in backend.entries(layout.ADAPTERS):
        if layout.digest_of(stored.key) and stored.key not in needed:
            unneeded[stored.key] = stored
    banks = {layout.bank_key(sha256) for sha256 in catalog.banks_needed()}
    for stored in backend.entries(layout.BANKS):
        if layout.bank_of(stored.key) and stored.key not in banks:
            unneeded[stored.key] = stored
    for key in unneeded:
        garbage.note_unneeded(backend, key, now)
    for entry in backend.entries(layout.UNREFERENCED):
        key = entry.key.removeprefix(f"{layout.UNREFERENCED}/")
        if key not in unneeded:
            garbage.tidy(backend, key, now)
    return unneeded


def _needed_after_all(backend: Backend, catalog: Catalog, due: Iterable[str]) -> set[str]:
    """Return those banks among `due` that an adapter uses according to its header.

    A damaged catalog may give wrong answers, and a removed bank cannot be restored. If an adapter
    cannot be read (it may be of a later version), its bank is not known, so all banks are returned.
    """
    banks = {key for key in due if layout.bank_of(key)}
    if not banks:
        return banks
    needed = set()
    for stored in backend.entries(layout.ADAPTERS):
        content = backend.content(stored.key)
        if content is None:
            continue
        try:
            needed.add(layout.bank_key(PackedFile.parse(content).bank.sha256.hex()))
        except VbfmtError as error:
            warn(f"no bank is removed, because an adapter may use it: {error.in_file(stored.key)}")
            return banks
    if banks & needed:
        catalog.rebuild()
        warn(f"the catalog of {backend.where} lacked banks that adapters use; it was rebuilt")
    return banks & needed
