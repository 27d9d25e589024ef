"""An SQLite database that is rebuilt from the store's objects if it is damaged."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from typing import Any, TypeVar

from vbfmt._files import storage
from vbfmt.errors import StoreError, warn
from vbfmt.store.rows import SCHEMA, TABLES

T = TypeVar("T")

Work = Callable[[sqlite3.Connection], T]

_PATIENCE = 60.0
"""Seconds to wait for another process's transaction."""


class Database:
    """A connection to the database. It is opened at the first use, and again at the first use after
    `close` or in a forked process. Only one thread may use it at a time.

    A damaged file is removed and created again. If the file cannot be written, the database is kept
    in memory. Both cause a warning.

    Args:
        fill: a function that fills the tables from the objects. It is called in a transaction.

    Attributes:
        fresh: whether this connection has created the tables, so that they are empty.

    Raises:
        StoreError: another process keeps it locked, or it fails again after it was rebuilt.
    """

    def __init__(self, path: str, fill: Work[object]) -> None:
        self._path = path
        self._fill = fill
        self.fresh = False
        self._connection: sqlite3.Connection | None = None
        self._process = os.getpid()
        self._inherited: list[sqlite3.Connection | None] = []

    def close(self) -> None:
        """Close the connection."""
        if self._is_open():
            with contextlib.suppress(sqlite3.Error):
                self._opened().close()
        self._connection = None

    def _is_open(self) -> bool:
        if self._process != os.getpid():
            # SQLite forbids to use or close a connection in a forked process.
            self._inherited.append(self._connection)
            self._connection, self._process = None, os.getpid()
        return self._connection is not None

    def _opened(self) -> sqlite3.Connection:
        if not self._is_open() or self._connection is None:
            self._connection = self._connected()
        return self._connection

    def renew(self) -> None:
        """Remove the file and open an empty one."""
        self.close()
        self._unlink()

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""

        def found() -> list[tuple[Any, ...]]:
            return self._opened().execute(query, values).fetchall()

        def found_anew() -> list[tuple[Any, ...]]:
            self._transaction(self._fill)
            return found()

        return self._tried(found if self._is_open() else found_anew, found_anew)

    def change(self, work: Work[T]) -> T:
        """Call `work` in a transaction. If the database is damaged, call it again after the
        rebuild."""

        def done() -> T:
            return self._transaction(work)

        return self._tried(done, done)

    def damaged(self) -> None:
        """Rebuild the database, because a row is damaged."""
        self.renew()
        self._opened()
        self._warn_of_damage()

    def _tried(self, first: Callable[[], T], again: Callable[[], T]) -> T:
        try:
            return first()
        except sqlite3.ProgrammingError:  # the connection was closed; the file is not damaged
            raise
        except sqlite3.Error as error:
            self._mend(error)
        try:
            return again()
        except sqlite3.Error as error:
            raise self._refusal(error) from None

    def _mend(self, error: sqlite3.Error) -> None:
        if _is_busy(error):
            raise self._refusal(error) from None
        if _cannot_write(error):
            self.close()
            self._connection = self._made_in_memory(error)
        else:
            self.damaged()

    def _transaction(self, work: Work[T]) -> T:
        connection = self._opened()
        connection.execute("BEGIN IMMEDIATE")
        try:
            done = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:  # SQLite may have rolled back by itself
                    connection.execute("ROLLBACK")
            raise
        return done

    def _connected(self) -> sqlite3.Connection:
        try:
            return self._made(self._path)
        except sqlite3.Error as error:
            if not os.access(os.path.dirname(self._path) or ".", os.W_OK):
                return self._made(":memory:")  # the store is read-only
            if _is_busy(error):
                raise self._refusal(error) from None
            if _cannot_write(error):
                return self._made_in_memory(error)
        self._unlink()
        try:
            made = self._made(self._path)
        except sqlite3.Error as error:
            raise self._refusal(error) from None
        self._connection = made  # before the warning, which the caller may turn into an error
        self._warn_of_damage()
        return made

    def _made(self, path: str) -> sqlite3.Connection:
        database = sqlite3.connect(
            path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            database.execute("PRAGMA journal_mode = WAL")
            # Changes are not flushed to the disk. After a power failure, lost changes are read from
            # the objects again.
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute("PRAGMA cache_size = -32768")  # KiB: a long transaction's pages
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
                self.fresh = True
            database.execute("COMMIT")
        except BaseException:
            database.close()
            raise
        return database

    def _made_in_memory(self, error: sqlite3.Error) -> sqlite3.Connection:
        self._connection = made = self._made(":memory:")
        warn(f"cannot write the catalog {self._path} ({error}); it is kept in memory")
        return made

    def _warn_of_damage(self) -> None:
        warn(f"the catalog {self._path} is damaged; it is rebuilt from the objects")

    def _unlink(self) -> None:
        for ending in ("", "-wal", "-shm"):
            path = self._path + ending
            with storage.refusing("cannot remove", path), contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _refusal(self, error: sqlite3.Error) -> StoreError:
        return StoreError(
            "cannot use the catalog",
            file=self._path,
            found=str(error),
            advice="stop other processes that use the store, or remove this file to rebuild it",
        )


def _is_busy(error: sqlite3.Error) -> bool:
    """Return whether another process has locked the database."""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def _cannot_write(error: sqlite3.Error) -> bool:
    """Return whether the disk is full, failing or read-only."""
    words = ("full", "readonly", "unable to open", "I/O error")
    return isinstance(error, sqlite3.OperationalError) and any(word in str(error) for word in words)
