"""The catalog: an SQLite file that answers what the objects alone would answer slowly.

Nothing is only in the catalog. Before it answers, it looks which groups of keys have changed since
it last saw them, lists those, and reads the headers of what it does not know. So whatever
happens to it, or without it, to the store, it comes right by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vbfmt._format.packed_file import PackedFile
from vbfmt.errors import VbfmtError, warn
from vbfmt.store import layout, names
from vbfmt.store.backend import Backend, Stored

SCHEMA = 1
FILE = "catalog.sqlite"

_TABLES = """
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

_MOST_NOTES = 1024
_LONGEST_WAIT = 2.0
"""Seconds that a note waits while others come."""

_YOUNG = 60.0
"""Seconds: what is younger may be an object whose writer has not come to the catalog yet."""


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


_COLUMNS = (
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
"""Of an `Entry`, as the columns stand, but for the last two."""


class Catalog:
    """One process's connection to the catalog of a store; threads take turns.

    Args:
        shared: whether all who write to the store write to this catalog, too. Then a difference is
            worth a warning.
    """

    def __init__(self, backend: Backend, path: str, *, shared: bool) -> None:
        self._backend = backend
        self._path = path
        self._shared = shared
        self._lock = threading.RLock()
        self._fresh = False
        self._notes: list[Statement] = []
        self._written = time.monotonic()
        self._database = self._opened()
        weakref.finalize(self, _write_rest, self._notes, path)

    def close(self) -> None:
        """Write what is noted, and close the database."""
        with self._lock:
            self._write_notes()
            self._database.close()

    def add(self, digest: str, stored: Stored, packed: PackedFile) -> None:
        """Note an adapter that has been written, and its bank."""
        bank = (packed.bank.sha256.hex(), packed.bank.length, stored.modified)
        self._note(
            *_adapter_rows(digest, stored, packed),
            ("INSERT OR IGNORE INTO banks VALUES (?, ?, ?)", bank),
        )

    def add_name(self, name: str, digest: str) -> None:
        """Note what a name points to now."""
        # Without a version: should the record change meanwhile, the next refresh reads it.
        row = (layout.name_key(name), name, digest, None)
        self._note(("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?)", row))

    def _note(self, *statements: Statement) -> None:
        """Remember what to write. A transaction for each adapter would cost more than the adapter;
        should the process end before they are written, the next refresh finds what is missing.
        """
        with self._lock:
            self._notes += statements
            if len(self._notes) >= _MOST_NOTES or time.monotonic() - self._written > _LONGEST_WAIT:
                self._write_notes()

    def _write_notes(self) -> None:
        if self._notes:
            with self._changing():
                pass

    def forget(self, key: str) -> None:
        """Note that an object or a name is about to be removed."""
        with self._changing() as database:
            if (digest := layout.digest_of(key)) is not None:
                _delete(database, digest)
            elif (sha256 := layout.bank_of(key)) is not None:
                database.execute("DELETE FROM banks WHERE sha256 = ?", (sha256,))
            else:
                database.execute("DELETE FROM names WHERE key = ?", (key,))

    def refresh(self) -> None:
        """Bring the catalog up to the objects, and say if it had to be.

        Warns:
            VbfmtWarning: it did not know what is there, or knew what is not.
        """
        with self._changing() as database:
            unknown = gone = 0
            for prefix, sync in (
                (layout.ADAPTERS, self._sync_adapters),
                (layout.BANKS, self._sync_banks),
                (layout.NAMES, self._sync_names),
            ):
                seen = dict(database.execute("SELECT keys, stamp FROM seen"))
                for keys, stamp in self._backend.stamps(prefix).items():
                    if stamp is not None and seen.get(keys) == stamp:
                        continue
                    more, less = sync(database, keys)
                    unknown, gone = unknown + more, gone + less
                    row = (keys, stamp)
                    database.execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", row)
        if (unknown or gone) and self._shared and not self._fresh:
            warn(
                f"the catalog of {self._backend.where} did not know {unknown} things that are "
                f"there and knew {gone} that are not; it was brought up to date"
            )
        self._fresh = False

    def entries(
        self,
        *,
        base_model: str | None = None,
        bank: str | None = None,
        metadata: Mapping[str, str] | None = None,
        added_since: float | None = None,
        limit: int | None = None,
    ) -> list[Entry]:
        """The adapters of which all that is given holds, newest first."""
        where, values = ["1"], []
        for condition, value in (
            ("base_model = ?", base_model),
            ("bank = ?", bank),
            ("added >= ?", added_since),
        ):
            if value is not None:
                where.append(condition)
                values.append(value)
        for key, text in (metadata or {}).items():
            where.append("digest IN (SELECT digest FROM metadata WHERE key = ? AND value = ?)")
            values += [key, text]
        query = (
            f"SELECT {_COLUMNS}, (SELECT json_group_array(name) FROM names WHERE names.digest = "
            f"adapters.digest) FROM adapters WHERE {' AND '.join(where)} "
            f"ORDER BY added DESC, digest LIMIT {-1 if limit is None else int(limit)}"
        )
        with self._lock:
            rows = self._database.execute(query, values).fetchall()
        return [_entry(row) for row in rows]

    def names(self) -> dict[str, str]:
        """Digests by name."""
        with self._lock:
            return dict(self._database.execute("SELECT name, digest FROM names ORDER BY name"))

    def banks(self) -> dict[str, int]:
        """Sizes of banks by their SHA-256."""
        with self._lock:
            return dict(self._database.execute("SELECT sha256, size FROM banks ORDER BY sha256"))

    def banks_needed(self) -> set[str]:
        """The SHA-256 of the banks of all adapters."""
        with self._lock:
            return {
                bank for (bank,) in self._database.execute("SELECT DISTINCT bank FROM adapters")
            }

    def totals(self) -> tuple[int, int, int, int, int]:
        """Adapters and their bytes, banks and their bytes, names."""
        with self._lock:
            (one,) = self._database.execute(
                "SELECT (SELECT count(*) FROM adapters), (SELECT total(size) FROM adapters),"
                "(SELECT count(*) FROM banks), (SELECT total(size) FROM banks),"
                "(SELECT count(*) FROM names)"
            )
        return tuple(int(number) for number in one)  # type: ignore[return-value]

    def rebuild(self) -> None:
        """Make the catalog anew from the objects."""
        with self._lock:
            self._notes.clear()
            self._database.close()
            _unlink(self._path)
            self._database = self._opened()
            self.refresh()

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._made(self._path)
        except sqlite3.DatabaseError as error:
            if not os.access(os.path.dirname(self._path), os.W_OK):
                return self._made(":memory:")  # a store that may only be read
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                raise
        warn(f"the catalog {self._path} is damaged; it is made anew from the objects")
        _unlink(self._path)
        return self._made(self._path)

    def _made(self, path: str) -> sqlite3.Connection:
        database = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            # Not flushed at each change: what a power cut takes from it is read from the objects.
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("BEGIN IMMEDIATE")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != SCHEMA:
                for (name,) in database.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table'"
                ).fetchall():
                    database.execute(f'DROP TABLE "{name}"')
                for statement in _TABLES.split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {SCHEMA}")
                self._fresh = True
            database.execute("COMMIT")
        except BaseException:
            database.close()
            raise
        return database

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                for statement, values in self._notes:
                    self._database.execute(statement, values)
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
            self._notes.clear()
            self._written = time.monotonic()

    def _sync_adapters(self, database: sqlite3.Connection, keys: str) -> tuple[int, int]:
        """List a group; how many adapters were not known, and how many known ones are gone."""
        start = "sha256:" + keys.removeprefix(layout.ADAPTERS).removeprefix("/")
        query = "SELECT digest FROM adapters WHERE digest BETWEEN ? AND ?"
        known = {digest for (digest,) in database.execute(query, (start, f"{start}~"))}
        told = 0
        for stored in self._backend.entries(keys):
            digest = layout.digest_of(stored.key)
            if digest is None:
                continue
            if digest in known:
                known.remove(digest)
                continue
            content = self._backend.content(stored.key)
            with contextlib.suppress(VbfmtError, OverflowError):  # `Store.verify` says what it is
                if content is not None:
                    for statement, row in _adapter_rows(digest, stored, PackedFile.parse(content)):
                        database.execute(statement, row)
                    told += time.time() - stored.modified > _YOUNG
        for digest in known:
            _delete(database, digest)
        return told, len(known)

    def _sync_banks(self, database: sqlite3.Connection, keys: str) -> tuple[int, int]:
        start = keys.removeprefix(layout.BANKS).removeprefix("/")
        query = "SELECT sha256 FROM banks WHERE sha256 BETWEEN ? AND ?"
        known = {sha256 for (sha256,) in database.execute(query, (start, f"{start}~"))}
        told = 0
        for stored in self._backend.entries(keys):
            sha256 = layout.bank_of(stored.key)
            if sha256 is not None and sha256 not in known:
                row = (sha256, stored.size, stored.modified)
                database.execute("INSERT OR REPLACE INTO banks VALUES (?, ?, ?)", row)
                told += time.time() - stored.modified > _YOUNG
            known.discard(sha256 or "")
        for sha256 in known:
            database.execute("DELETE FROM banks WHERE sha256 = ?", (sha256,))
        return told, len(known)

    def _sync_names(self, database: sqlite3.Connection, keys: str) -> tuple[int, int]:
        query = "SELECT key, version FROM names WHERE key BETWEEN ? AND ?"
        known = dict(database.execute(query, (f"{keys}/", f"{keys}/~")))
        told = 0
        for stored in self._backend.entries(keys):
            before = known.pop(stored.key, _NEW)
            if before == stored.version:
                continue
            found = self._backend.found(stored.key)
            if found is None:
                continue
            one = names.parse(found, self._backend.address(stored.key))
            row = (stored.key, one.name, one.digest, stored.version)
            database.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?)", row)
            told += before == _NEW and time.time() - stored.modified > _YOUNG
        for key in known:
            database.execute("DELETE FROM names WHERE key = ?", (key,))
        return told, len(known)


_NEW = "new"


def _entry(row: tuple[Any, ...]) -> Entry:
    plain: dict[str, Any] = dict(zip(_FIELDS, row, strict=False))
    metadata, names_of = row[len(_FIELDS) :]
    return Entry(**plain, metadata=json.loads(metadata), names=tuple(sorted(json.loads(names_of))))


def _adapter_rows(digest: str, stored: Stored, packed: PackedFile) -> list[Statement]:
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


def _delete(database: sqlite3.Connection, digest: str) -> None:
    database.execute("DELETE FROM adapters WHERE digest = ?", (digest,))
    database.execute("DELETE FROM metadata WHERE digest = ?", (digest,))


def _write_rest(notes: list[Statement], path: str) -> None:
    """Write the notes of a catalog that was not closed, when it is thrown away."""
    if notes:
        with contextlib.suppress(sqlite3.Error), sqlite3.connect(path) as database:
            for statement, values in notes:
                database.execute(statement, values)
        notes.clear()


def _unlink(path: str) -> None:
    for ending in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + ending)
