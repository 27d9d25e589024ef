"""The rows of the catalog's tables, and the entries that they hold."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vbfmt._format.packed_file import PackedFile
from vbfmt.store.backend import Stored

SCHEMA = 1
TABLES = """
CREATE TABLE adapters (
    digest TEXT PRIMARY KEY, size INTEGER, added REAL, bank TEXT, bank_size INTEGER,
    base_model TEXT, base_revision TEXT, h INTEGER, b INTEGER, k INTEGER, n INTEGER,
    modules INTEGER, metadata TEXT
) WITHOUT ROWID;
CREATE INDEX by_base ON adapters (base_model);
CREATE INDEX by_bank ON adapters (bank);
CREATE TABLE metadata (
    key TEXT, value TEXT, digest TEXT, PRIMARY KEY (key, value, digest)
) WITHOUT ROWID;
CREATE INDEX metadata_of ON metadata (digest);
CREATE TABLE names (key TEXT PRIMARY KEY, name TEXT, digest TEXT, version TEXT) WITHOUT ROWID;
CREATE INDEX names_of ON names (digest);
CREATE TABLE banks (sha256 TEXT PRIMARY KEY, size INTEGER, added REAL) WITHOUT ROWID;
CREATE TABLE seen (keys TEXT PRIMARY KEY, stamp TEXT) WITHOUT ROWID;
"""

Statement = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Entry:
    """An adapter in a store.

    Attributes:
        digest: ``sha256:…``.
        size: bytes, without the bank.
        added: seconds since 1970.
        bank: SHA-256 of its bank.
        bank_size: bytes.
        base_model, base_revision, h, b, k, metadata: as in `Adapter`.
        rows: N, the number of sub-vectors.
        modules: how many.
        names: that point to it, sorted.
    """

    digest: str
    size: int
    added: float
    bank: str
    bank_size: int
    base_model: str | None
    base_revision: str | None
    h: int
    b: int
    k: int
    rows: int
    modules: int
    metadata: Mapping[str, str]
    names: tuple[str, ...] = field(default=())


COLUMNS = (
    "digest, size, added, bank, bank_size, base_model, base_revision, h, b, k, n, modules, metadata"
)


_FIELDS = (
    "digest",
    "size",
    "added",
    "bank",
    "bank_size",
    "base_model",
    "base_revision",
    "h",
    "b",
    "k",
    "rows",
    "modules",
)
"""Fields of an `Entry` in the order of the columns, but for the last two."""


def entry_of(row: tuple[Any, ...]) -> Entry:
    """Return the entry of a row of `COLUMNS` and its names."""
    plain: dict[str, Any] = dict(zip(_FIELDS, row, strict=False))
    metadata, names_of = row[len(_FIELDS) :]
    return Entry(**plain, metadata=json.loads(metadata), names=tuple(sorted(json.loads(names_of))))


def adapter_rows(digest: str, stored: Stored, packed: PackedFile) -> list[Statement]:
    """Return the statements that insert an adapter and its metadata."""
    head = packed.header
    metadata = dict(head.metadata or {})
    row = (
        digest,
        stored.size,
        stored.modified,
        packed.bank.sha256.hex(),
        packed.bank.length,
        head.base_model,
        head.base_revision,
        head.h,
        head.b,
        head.k,
        head.rows,
        len(head.modules),
        json.dumps(metadata),
    )
    texts: list[Statement] = [
        ("INSERT OR REPLACE INTO metadata VALUES (?, ?, ?)", (key, value, digest))
        for key, value in metadata.items()
    ]
    return [(f"INSERT OR REPLACE INTO adapters VALUES ({', '.join('?' * 13)})", row), *texts]


def delete_adapter(database: sqlite3.Connection, digest: str) -> None:
    """Delete an adapter and its metadata."""
    database.execute("DELETE FROM adapters WHERE digest = ?", (digest,))
    database.execute("DELETE FROM metadata WHERE digest = ?", (digest,))
