"""The catalog's tables: their columns, and conversions between rows and entries."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vbfmt._format.header import Header
from vbfmt._format.packed_file import BANK
from vbfmt.store.backend import Stored

SCHEMA = 2
TABLES = """
CREATE TABLE adapters (
    id INTEGER PRIMARY KEY, digest BLOB UNIQUE, size INTEGER, added REAL, bank TEXT,
    bank_size INTEGER, base_model TEXT, base_revision TEXT, h INTEGER, b INTEGER, k INTEGER,
    n INTEGER, modules INTEGER, metadata TEXT
);
CREATE INDEX by_base ON adapters (base_model);
CREATE INDEX by_bank ON adapters (bank);
CREATE TABLE metadata (
    key TEXT, value TEXT, adapter INTEGER, PRIMARY KEY (key, value, adapter)
) WITHOUT ROWID;
CREATE INDEX metadata_of ON metadata (adapter);
CREATE TABLE names (key TEXT UNIQUE, name TEXT, digest BLOB, version TEXT);
CREATE INDEX names_of ON names (digest);
CREATE TABLE banks (sha256 TEXT PRIMARY KEY, size INTEGER, added REAL) WITHOUT ROWID;
CREATE TABLE seen (keys TEXT PRIMARY KEY, stamp TEXT) WITHOUT ROWID;
"""
# Digests are stored as bytes, and rows refer to adapters by number, which keeps the tables small: a
# query of a large catalog mainly costs random reads of pages.

Statement = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Entry:
    """An adapter in a store.

    Attributes:
        digest: ``sha256:…``.
        size: length of the file in bytes, without the bank.
        added: time when the adapter was added, in seconds since 1970.
        bank: SHA-256 of the bank, 64 hexadecimal digits.
        bank_size: length of the bank in bytes.
        base_model, base_revision, h, b, k, metadata: as in `Adapter`.
        rows: N, the number of sub-vectors.
        modules: number of modules.
        names: names that point to it, sorted.
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


_FIELDS = tuple(each.name for each in fields(Entry))[:-2]
"""The fields of an `Entry` in the order of `COLUMNS`, without the last two fields."""


def to_bytes(digest: str) -> bytes:
    """Convert a digest to the form that the tables store."""
    return bytes.fromhex(digest.removeprefix("sha256:"))


def to_digest(content: bytes) -> str:
    """Convert the result of `to_bytes` back to a digest."""
    return f"sha256:{content.hex()}"


def entry_of(row: tuple[Any, ...]) -> Entry:
    """Return the entry for a row of `COLUMNS` and names.

    Raises:
        ValueError, TypeError, AttributeError: the row is damaged.
    """
    plain: dict[str, Any] = dict(zip(_FIELDS, row, strict=False))
    plain["digest"] = to_digest(plain["digest"])
    metadata, names_of = row[len(_FIELDS) :]
    return Entry(**plain, metadata=json.loads(metadata), names=tuple(sorted(json.loads(names_of))))


def adapter_rows(digest: str, stored: Stored, header: Header) -> list[Statement]:
    """Return the statements that insert an adapter and its metadata."""
    metadata = dict(header.metadata or {})
    bank = header.sections[BANK]
    identifier = to_bytes(digest)
    row = (
        identifier,
        stored.size,
        stored.modified,
        bank.sha256.hex(),
        bank.length,
        header.base_model,
        header.base_revision,
        header.h,
        header.b,
        header.k,
        header.rows,
        len(header.modules),
        json.dumps(metadata),
    )
    return [
        (_INSERT, row),
        *((_INSERT_METADATA, (key, value, identifier)) for key, value in metadata.items()),
    ]


_INSERT = (
    f"INSERT INTO adapters ({COLUMNS}) VALUES ({', '.join('?' * 13)}) "
    "ON CONFLICT (digest) DO UPDATE SET size = excluded.size, added = excluded.added"
)
_INSERT_METADATA = "INSERT OR IGNORE INTO metadata SELECT ?, ?, id FROM adapters WHERE digest = ?"


def bank_row(sha256: str, size: int, added: float) -> Statement:
    """Return the statement that inserts a bank."""
    return "INSERT OR REPLACE INTO banks VALUES (?, ?, ?)", (sha256, size, added)


def name_row(key: str, name: str, digest: str, version: str | None) -> Statement:
    """Return the statement that inserts or updates a name."""
    row = (key, name, to_bytes(digest), version)
    return "INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?)", row


def unseen(key: str) -> Statement:
    """Return the statement that makes the next refresh list the group of keys that contains
    `key`."""
    return "DELETE FROM seen WHERE keys = ?", (key.rpartition("/")[0],)


def delete_adapter(database: sqlite3.Connection, digest: str) -> None:
    """Delete an adapter and its metadata."""
    found = (to_bytes(digest),)
    numbers = "SELECT id FROM adapters WHERE digest = ?"
    database.execute(f"DELETE FROM metadata WHERE adapter = ({numbers})", found)
    database.execute("DELETE FROM adapters WHERE digest = ?", found)
