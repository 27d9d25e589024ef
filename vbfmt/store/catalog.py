"""The catalog: an SQLite index of the objects. Without it a search would read every object.

It contains nothing that the objects do not. Before each answer it checks which groups of keys
have changed, lists those, and reads the headers of new objects. So it corrects itself, whatever
happened to it, or to the store without it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from vbfmt._format.header import Header
from vbfmt._format.packed_file import BANK
from vbfmt.errors import StoreError, warn
from vbfmt.store import layout, synchronize
from vbfmt.store.backend import Backend, Stored
from vbfmt.store.database import Database
from vbfmt.store.query import Query
from vbfmt.store.rows import (
    Entry,
    Statement,
    adapter_rows,
    bank_row,
    delete_adapter,
    entry_of,
    name_row,
    to_digest,
    unseen,
)

T = TypeVar("T")

FILE = "catalog.sqlite"

_MOST_NOTES = 16384
_MOST_TEXT = 16 << 20
"""Approximate number of characters in the pending notes."""

_LONGEST_WAIT = 10.0
"""Seconds after the last change of the database. A later note is written at once, with those before
it."""


class Catalog:
    """One process's connection to the catalog of a store. Its threads use it in turns.

    Args:
        shared: whether every writer of the store also writes to this catalog. Then a difference
            between the two is worth a warning.
    """

    def __init__(self, backend: Backend, path: str, *, shared: bool) -> None:
        self._backend = backend
        self._shared = shared
        self._lock = threading.RLock()
        self._notes: list[Statement] = []
        self._text = 0
        self._written = time.monotonic()
        self._database = Database(path, self._synchronize)
        weakref.finalize(self, _write_rest, self._notes, path)

    def close(self) -> None:
        """Write the pending notes, and close the database."""
        with self._lock:
            with contextlib.suppress(StoreError):  # the next refresh finds what is missing
                self._write_notes()
            self._database.close()

    def add(self, digest: str, stored: Stored, header: Header) -> None:
        """Record that an adapter and its bank have been written."""
        bank = header.sections[BANK]
        sha256 = bank.sha256.hex()
        self._note(
            *adapter_rows(digest, stored, header),
            bank_row(sha256, bank.length, stored.modified),
            unseen(layout.adapter_key(digest)),
            unseen(layout.bank_key(sha256)),
        )

    def add_name(self, name: str, digest: str) -> None:
        """Record the digest that a name points to."""
        # Without a version, so that the next refresh reads a record that changed meanwhile.
        key = layout.name_key(name)
        self._note(name_row(key, name, digest, None), unseen(key))

    def _note(self, *statements: Statement) -> None:
        """Keep statements to write later: a transaction for each adapter would cost more than the
        adapter. If the process ends before, the next refresh finds what is missing.

        When they are written, other processes may have removed or changed the objects, and updated
        the catalog. So they come with `unseen`.
        """
        with self._lock:
            self._notes += statements
            self._text += sum(len(v) for _, row in statements for v in row if isinstance(v, str))
            if (
                len(self._notes) >= _MOST_NOTES
                or self._text >= _MOST_TEXT
                or time.monotonic() - self._written > _LONGEST_WAIT
            ):
                self._write_notes()

    def _write_notes(self) -> None:
        if self._notes:
            self._change(lambda _: None)

    def forget(self, key: str) -> None:
        """Record that an object or a name is about to be removed.

        If it is not removed after all, the next refresh finds it again.
        """

        def work(database: sqlite3.Connection) -> None:
            if (digest := layout.digest_of(key)) is not None:
                delete_adapter(database, digest)
            elif (sha256 := layout.bank_of(key)) is not None:
                database.execute("DELETE FROM banks WHERE sha256 = ?", (sha256,))
            else:
                database.execute("DELETE FROM names WHERE key = ?", (key,))
            database.execute(*unseen(key))

        self._change(work)

    def refresh(self) -> None:
        """Update the catalog from the objects.

        Warns:
            VbfmtWarning: objects were missing from it, or it had objects that no longer exist.
        """
        unknown, gone = self._change(self._synchronize)
        if (unknown or gone) and self._shared and not self._database.fresh:
            warn(
                f"the catalog of {self._backend.where} was out of date: {unknown} objects were "
                f"missing from it, and {gone} in it are gone; it was updated"
            )
        self._database.fresh = False

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

    def entries(self, query: Query) -> list[Entry]:
        """Return the adapters that a query finds, newest first."""
        return self._answer(lambda rows: list(map(entry_of, rows)), *query.statement())

    def names(self) -> dict[str, str]:
        """Return name → digest."""
        return self._answer(
            lambda rows: {name: to_digest(digest) for name, digest in rows},
            "SELECT name, digest FROM names ORDER BY name",
        )

    def banks_needed(self) -> set[str]:
        """Return the SHA-256 of the banks that adapters need."""
        return self._answer(
            lambda rows: {bank for (bank,) in rows}, "SELECT DISTINCT bank FROM adapters"
        )

    def totals(self) -> tuple[int, int, int, int, int]:
        """Return the number and total size of adapters, the same for banks, and the number of
        names."""
        adapters, adapter_bytes, banks, bank_bytes, names = self._answer(
            lambda rows: map(int, rows[0]),
            "SELECT (SELECT count(*) FROM adapters), (SELECT total(size) FROM adapters),"
            "(SELECT count(*) FROM banks), (SELECT total(size) FROM banks),"
            "(SELECT count(*) FROM names)",
        )
        return adapters, adapter_bytes, banks, bank_bytes, names

    def rebuild(self) -> None:
        """Rebuild the catalog from the objects."""
        with self._lock:
            self._notes.clear()
            self._database.renew()
            self.refresh()

    def _answer(
        self, make: Callable[[list[tuple[Any, ...]]], T], query: str, values: tuple[Any, ...] = ()
    ) -> T:
        """Return `make(row)` of each row of a query. A row that `make` refuses is damaged."""
        with self._lock:
            try:
                return make(self._database.rows(query, values))
            except (ValueError, TypeError, AttributeError):
                self._database.damaged()
                self.refresh()
            return make(self._database.rows(query, values))

    def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call `work` in a transaction, after the notes are written. It may be called twice."""

        def noted(database: sqlite3.Connection) -> T:
            for statement, values in self._notes:
                database.execute(statement, values)
            return work(database)

        with self._lock:
            done = self._database.change(noted)
            self._notes.clear()
            self._text = 0
            self._written = time.monotonic()
            return done


def _write_rest(notes: list[Statement], path: str) -> None:
    """Write the notes of a catalog that was not closed, when it is garbage-collected."""
    if notes:
        with contextlib.suppress(sqlite3.Error), sqlite3.connect(path) as database:
            for statement, values in notes:
                database.execute(statement, values)
        notes.clear()
