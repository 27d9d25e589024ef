"""The catalog: an SQLite index of a store's objects. Without it, a search would read every object.

All its information comes from the objects. Before each query, it checks which groups of keys have
changed, lists these groups, and reads the headers of new objects. So the catalog corrects itself,
whatever happened to it or to the objects.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from vbfmt._format.header import Header
from vbfmt._format.packed_file import BANK
from vbfmt.errors import StoreError, VbfmtError, warn
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

_logger = logging.getLogger(__name__)

T = TypeVar("T")

FILE = "catalog.sqlite"

_MOST_NOTES = 16384
_MOST_TEXT = 16 << 20
"""Largest number of characters in the pending notes, approximately."""

_LONGEST_WAIT = 10.0
"""Seconds after which a new note is written immediately, together with all pending notes. The time
is counted from the last change of the database."""


class Catalog:
    """One process's connection to the catalog of a store. Its threads take turns.

    A note is a change that is recorded in memory, and written to the database later.

    Args:
        shared: whether every writer of the store also updates this catalog, so that a catalog that
            differs from the store deserves a warning.
    """

    def __init__(self, backend: Backend, path: str, *, shared: bool) -> None:
        self._backend = backend
        self._shared = shared
        self._lock = threading.RLock()
        self._notes: list[Statement] = []
        self._text = 0
        self._written = time.monotonic()
        self._damaged: list[VbfmtError] = []
        self._database = Database(path, self._synchronize)
        weakref.finalize(self, _write_rest, self._notes, path)

    def close(self) -> None:
        """Write the pending notes, and close the database."""
        with self._lock:
            with contextlib.suppress(StoreError):  # the next refresh finds what is missing
                self._write_notes()
            self._database.close()

    def add(self, digest: str, stored: Stored, header: Header) -> None:
        """Note that an adapter and its bank have been written."""
        bank = header.sections[BANK]
        sha256 = bank.sha256.hex()
        self._note(
            *adapter_rows(digest, stored, header),
            bank_row(sha256, bank.length, stored.modified),
            unseen(layout.adapter_key(digest)),
            unseen(layout.bank_key(sha256)),
        )

    def add_name(self, name: str, digest: str) -> None:
        """Note the digest that a name points to."""
        # No version is stored, so that the next refresh reads the name's record again.
        key = layout.name_key(name)
        self._note(name_row(key, name, digest, None), unseen(key))

    def _note(self, *statements: Statement) -> None:
        """Keep statements to write later.

        A transaction for each adapter would cost more than the adapter. If the process ends before
        the notes are written, the next refresh finds what is missing. By the time they are written,
        other processes may have changed or removed the objects. So each note also marks its group
        of keys as not seen (`unseen`), and the next refresh lists the group again.
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
        """Delete an object or a name that is about to be removed from the store.

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

    def refresh(self, damaged: list[VbfmtError] | None = None) -> None:
        """Update the catalog from the objects.

        Args:
            damaged: a list for the errors of damaged adapters and names.

        Warns:
            VbfmtWarning: the catalog lacked objects, or had objects that no longer exist; or an
                adapter or a name is damaged, and `damaged` is not given.
        """
        unknown, gone = self._change(self._synchronize)
        if damaged is not None:
            damaged += self._damaged
        else:
            for error in self._damaged:
                warn(str(error))
        if (unknown or gone) and self._shared and not self._database.fresh:
            warn(
                f"the catalog of {self._backend.where} was out of date and has been updated: "
                f"it lacked {unknown} objects, and had {gone} that no longer exist"
            )
        self._database.fresh = False

    def _synchronize(self, database: sqlite3.Connection) -> tuple[int, int]:
        unknown = gone = 0
        self._damaged = []
        for prefix, sync in (
            (layout.ADAPTERS, partial(synchronize.sync_adapters, damaged=self._damaged)),
            (layout.BANKS, synchronize.sync_banks),
            (layout.NAMES, partial(synchronize.sync_names, damaged=self._damaged)),
        ):
            seen = dict(database.execute("SELECT keys, stamp FROM seen"))
            for keys, stamp in self._backend.stamps(prefix).items():
                if stamp is not None and seen.get(keys) == stamp:
                    continue
                before = len(self._damaged)
                more, less = sync(self._backend, database, keys)
                unknown, gone = unknown + more, gone + less
                # The next refresh lists a group with a damaged object again, to report it again.
                row = (keys, stamp if len(self._damaged) == before else None)
                database.execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", row)
        return unknown, gone

    def entries(self, query: Query) -> list[Entry]:
        """Return the adapters that a query finds, newest first."""
        return self._answer(lambda rows: list(map(entry_of, rows)), *query.statement())

    def names(self) -> dict[str, str]:
        """Return the digest of each name."""
        return self._answer(
            lambda rows: {name: to_digest(digest) for name, digest in rows},
            "SELECT name, digest FROM names ORDER BY name",
        )

    def banks_needed(self) -> set[str]:
        """Return the SHA-256 of the banks that adapters use."""
        return self._answer(
            lambda rows: {bank for (bank,) in rows}, "SELECT DISTINCT bank FROM adapters"
        )

    def totals(self) -> tuple[int, int, int, int, int]:
        """Return the number and total size of adapters, those of banks, and the number of names."""
        adapters, adapter_bytes, banks, bank_bytes, names = self._answer(
            lambda rows: map(int, rows[0]),
            "SELECT (SELECT count(*) FROM adapters), (SELECT total(size) FROM adapters),"
            "(SELECT count(*) FROM banks), (SELECT total(size) FROM banks),"
            "(SELECT count(*) FROM names)",
        )
        return adapters, adapter_bytes, banks, bank_bytes, names

    def rebuild(self) -> None:
        """Rebuild the catalog from the objects."""
        _logger.info("rebuilding the catalog of %s from its objects", self._backend.where)
        with self._lock:
            self._notes.clear()
            self._database.renew()
            self.refresh()

    def _answer(
        self, make: Callable[[list[tuple[Any, ...]]], T], query: str, values: tuple[Any, ...] = ()
    ) -> T:
        """Return `make(rows)` for the rows of a query. If `make` raises an error, the catalog is
        damaged."""
        with self._lock:
            try:
                return make(self._database.rows(query, values))
            except (ValueError, TypeError, AttributeError):
                self._database.damaged()
                self.refresh()
            return make(self._database.rows(query, values))

    def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Write the notes and call `work`, in one transaction. `work` may be called twice."""

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
    """Write the notes of a catalog that is garbage-collected without being closed."""
    if notes:
        with contextlib.suppress(sqlite3.Error), sqlite3.connect(path) as database:
            for statement, values in notes:
                database.execute(statement, values)
        notes.clear()
