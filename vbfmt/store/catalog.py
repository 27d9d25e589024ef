"""The catalog: an SQLite index of the objects, which alone would be slow to search.

The catalog holds nothing that the objects do not. Before each answer it checks which groups of keys
have changed, lists those, and reads the headers of new objects. So it corrects itself, whatever
happened to it, or to the store without it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import TypeVar

from vbfmt._format.packed_file import PackedFile
from vbfmt.errors import StoreError, warn
from vbfmt.store import layout, synchronize
from vbfmt.store.backend import Backend, Stored
from vbfmt.store.rows import (
    COLUMNS,
    SCHEMA,
    TABLES,
    Entry,
    Statement,
    adapter_rows,
    delete_adapter,
    entry_of,
)

T = TypeVar("T")

FILE = "catalog.sqlite"

_MOST_NOTES = 1024
_LONGEST_WAIT = 2.0
"""Seconds until a note is written, at most."""


class Catalog:
    """One process's connection to the catalog of a store; threads take turns.

    Args:
        shared: whether every writer of the store also writes to this catalog. Then a difference
            between the two is worth a warning.
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
        """Write the pending notes, and close the database."""
        with self._lock:
            self._write_notes()
            self._database.close()

    def add(self, digest: str, stored: Stored, packed: PackedFile) -> None:
        """Note an adapter that has been written, and its bank."""
        bank = (packed.bank.sha256.hex(), packed.bank.length, stored.modified)
        self._note(
            *adapter_rows(digest, stored, packed),
            ("INSERT OR IGNORE INTO banks VALUES (?, ?, ?)", bank),
        )

    def add_name(self, name: str, digest: str) -> None:
        """Note the digest that a name points to."""
        # Without a version, so that the next refresh reads a record that changed meanwhile.
        row = (layout.name_key(name), name, digest, None)
        self._note(("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?)", row))

    def _note(self, *statements: Statement) -> None:
        """Keep statements to write later: a transaction for each adapter would cost more than the
        adapter. If the process ends before, the next refresh finds what is missing.
        """
        with self._lock:
            self._notes += statements
            if len(self._notes) >= _MOST_NOTES or time.monotonic() - self._written > _LONGEST_WAIT:
                self._write_notes()

    def _write_notes(self) -> None:
        if self._notes:
            self._change(lambda _: None)

    def forget(self, key: str) -> None:
        """Note that an object or a name is about to be removed."""

        def work(database: sqlite3.Connection) -> None:
            if (digest := layout.digest_of(key)) is not None:
                delete_adapter(database, digest)
            elif (sha256 := layout.bank_of(key)) is not None:
                database.execute("DELETE FROM banks WHERE sha256 = ?", (sha256,))
            else:
                database.execute("DELETE FROM names WHERE key = ?", (key,))

        self._change(work)

    def refresh(self) -> None:
        """Update the catalog from the objects.

        Warns:
            VbfmtWarning: objects were missing from it, or it had objects that are gone.
        """
        unknown, gone = self._change(self._synchronize)
        if (unknown or gone) and self._shared and not self._fresh:
            warn(
                f"the catalog of {self._backend.where} was out of date: {unknown} objects were "
                f"missing from it, and {gone} in it are gone; it was updated"
            )
        self._fresh = False

    def _synchronize(self, database: sqlite3.Connection) -> tuple[int, int]:
        unknown = gone = 0
        for prefix, sync in (
            (layout.ADAPTERS, synchronize.sync_adapters),
            (layout.BANKS, synchronize.sync_banks),
            (layout.NAMES, synchronize.sync_names),
        ):
            seen = dict(database.execute("SELECT keys, stamp FROM seen"))
            for keys, stamp in self._backend.stamps(prefix).items():
                if stamp is not None and seen.get(keys) == stamp:
                    continue
                more, less = sync(self._backend, database, keys)
                unknown, gone = unknown + more, gone + less
                row = (keys, stamp)
                database.execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", row)
        return unknown, gone

    def entries(
        self,
        *,
        base_model: str | None = None,
        bank: str | None = None,
        metadata: Mapping[str, str] | None = None,
        added_since: float | None = None,
        limit: int | None = None,
    ) -> list[Entry]:
        """Return the adapters that match all given arguments, newest first."""
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
            f"SELECT {COLUMNS}, (SELECT json_group_array(name) FROM names WHERE names.digest = "
            f"adapters.digest) FROM adapters WHERE {' AND '.join(where)} "
            f"ORDER BY added DESC, digest LIMIT {-1 if limit is None else int(limit)}"
        )
        with self._lock:
            rows = self._database.execute(query, values).fetchall()
        return [entry_of(row) for row in rows]

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
        """Return the number and bytes of adapters, the same of banks, and the number of names."""
        with self._lock:
            (one,) = self._database.execute(
                "SELECT (SELECT count(*) FROM adapters), (SELECT total(size) FROM adapters),"
                "(SELECT count(*) FROM banks), (SELECT total(size) FROM banks),"
                "(SELECT count(*) FROM names)"
            )
        return tuple(int(number) for number in one)  # type: ignore[return-value]

    def rebuild(self) -> None:
        """Rebuild the catalog from the objects."""
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
                return self._made(":memory:")  # the store is read-only
            if isinstance(error, sqlite3.OperationalError):
                if not _cannot_write(error):
                    raise self._refusal(error) from None
                return self._made_in_memory(error)
        warn(f"the catalog {self._path} is damaged; it is rebuilt from the objects")
        _unlink(self._path)
        return self._made(self._path)

    def _made(self, path: str) -> sqlite3.Connection:
        database = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            # Not flushed at each change: what a power cut loses is read from the objects again.
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("BEGIN IMMEDIATE")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != SCHEMA:
                for (name,) in database.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table'"
                ).fetchall():
                    database.execute(f'DROP TABLE "{name}"')
                for statement in TABLES.split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {SCHEMA}")
                self._fresh = True
            database.execute("COMMIT")
        except BaseException:
            database.close()
            raise
        return database

    def _made_in_memory(self, error: sqlite3.Error) -> sqlite3.Connection:
        warn(f"cannot write the catalog {self._path} ({error}); it is kept in memory")
        return self._made(":memory:")

    def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in a transaction, after the notes are written. Where the file cannot be
        written, go on in memory: nothing is only in the catalog. `work` may be done twice."""
        with self._lock:
            try:
                return self._transaction(work)
            except sqlite3.OperationalError as error:
                if not _cannot_write(error):
                    raise self._refusal(error) from None
                with contextlib.suppress(sqlite3.Error):
                    self._database.close()
                self._database = self._made_in_memory(error)
                return self._transaction(work)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            for statement, values in self._notes:
                self._database.execute(statement, values)
            done = work(self._database)
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # SQLite may have rolled back by itself
                self._database.execute("ROLLBACK")
            raise
        self._notes.clear()
        self._written = time.monotonic()
        return done

    def _refusal(self, error: sqlite3.Error) -> StoreError:
        return StoreError(
            "cannot use the catalog",
            file=self._path,
            found=str(error),
            advice="end other processes that use the store, or remove this file: it is made anew",
        )


def _cannot_write(error: sqlite3.OperationalError) -> bool:
    """Whether the disk is at fault: full, failing, or only to be read."""
    text = str(error)
    return any(word in text for word in ("full", "readonly", "unable to open", "I/O error"))


def _write_rest(notes: list[Statement], path: str) -> None:
    """Write the notes of a catalog that was not closed, when it is garbage-collected."""
    if notes:
        with contextlib.suppress(sqlite3.Error), sqlite3.connect(path) as database:
            for statement, values in notes:
                database.execute(statement, values)
        notes.clear()


def _unlink(path: str) -> None:
    for ending in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + ending)
