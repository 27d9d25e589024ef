"""Update the catalog's tables: list the objects of a group of keys, and read new ones."""

from __future__ import annotations

import sqlite3
import time

from vbfmt._format.packed_file import PackedFile
from vbfmt.errors import StoreError, VbfmtError
from vbfmt.store import layout, names
from vbfmt.store.backend import Backend
from vbfmt.store.rows import (
    adapter_rows,
    bank_row,
    delete_adapter,
    name_row,
    to_bytes,
    to_digest,
)

_YOUNG = 60.0
"""Age in seconds. The writer of a younger object may not have updated the catalog yet."""


_NEW = "new"


def sync_adapters(
    backend: Backend, database: sqlite3.Connection, keys: str, damaged: list[VbfmtError]
) -> tuple[int, int]:
    """List the adapters under `keys`, and correct the table.

    An adapter that cannot be read is left out, and the error is appended to `damaged`.

    Returns:
        The number of adapters that the table lacked, and the number of its adapters that no longer
        exist.
    """
    start = to_bytes(keys.removeprefix(layout.ADAPTERS).removeprefix("/"))
    query = "SELECT digest FROM adapters WHERE digest BETWEEN ? AND ?"
    found = database.execute(query, (start, start + b"\xff" * 32))
    known = {to_digest(digest) for (digest,) in found}
    added = 0
    for stored in backend.entries(keys):
        digest = layout.digest_of(stored.key)
        if digest is None:
            continue
        if digest in known:
            known.remove(digest)
            continue
        content = backend.content(stored.key)
        if content is None:
            continue
        try:
            for statement, row in adapter_rows(digest, stored, PackedFile.parse(content).header):
                database.execute(statement, row)
        except VbfmtError as error:
            damaged.append(error.in_file(backend.address(stored.key)))
        except OverflowError as error:
            where = backend.address(stored.key)
            damaged.append(StoreError("a number is too large", file=where, found=str(error)))
        else:
            added += time.time() - stored.modified > _YOUNG
    for digest in known:
        delete_adapter(database, digest)
    return added, len(known)


def sync_banks(backend: Backend, database: sqlite3.Connection, keys: str) -> tuple[int, int]:
    """List the banks under `keys`, and correct the table. Return the same as `sync_adapters`."""
    start = keys.removeprefix(layout.BANKS).removeprefix("/")
    query = "SELECT sha256 FROM banks WHERE sha256 BETWEEN ? AND ?"
    known = {sha256 for (sha256,) in database.execute(query, (start, f"{start}~"))}
    added = 0
    for stored in backend.entries(keys):
        sha256 = layout.bank_of(stored.key)
        if sha256 is not None and sha256 not in known:
            database.execute(*bank_row(sha256, stored.size, stored.modified))
            added += time.time() - stored.modified > _YOUNG
        known.discard(sha256 or "")
    for sha256 in known:
        database.execute("DELETE FROM banks WHERE sha256 = ?", (sha256,))
    return added, len(known)


def sync_names(
    backend: Backend, database: sqlite3.Connection, keys: str, damaged: list[VbfmtError]
) -> tuple[int, int]:
    """List the names under `keys`, and correct the table. Return the same as `sync_adapters`.

    A name whose record is damaged is left out, and the error is appended to `damaged`.
    """
    query = "SELECT key, version FROM names WHERE key BETWEEN ? AND ?"
    known = dict(database.execute(query, (f"{keys}/", f"{keys}/~")))
    added = 0
    for stored in backend.entries(keys):
        before = known.pop(stored.key, _NEW)
        if before == stored.version:
            continue
        found = backend.found(stored.key)
        if found is None:
            continue
        try:
            one = names.parse(found, backend, stored.key)
        except StoreError as error:
            damaged.append(error)
            database.execute("DELETE FROM names WHERE key = ?", (stored.key,))
            continue
        database.execute(*name_row(stored.key, one.name, one.digest, stored.version))
        added += before == _NEW and time.time() - stored.modified > _YOUNG
    for key in known:
        database.execute("DELETE FROM names WHERE key = ?", (key,))
    return added, len(known)
