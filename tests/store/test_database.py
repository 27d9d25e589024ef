"""A catalog whose database fails while it is open is rebuilt, kept in memory, or reported as one
error. No answer is wrong and nothing is lost."""

from __future__ import annotations

import os
import sqlite3
import warnings

import pytest

import vbfmt
from tests.store.adapters import adapter
from vbfmt import errors
from vbfmt.store import Store, database
from vbfmt.store.catalog import FILE

READS = {
    "entries": lambda store: [entry.digest for entry in store.entries()],
    "names": Store.names,
    "stats": lambda store: store.stats().adapters,
    "an unknown name": lambda store: refusal_of(store, "y"),
    "gc": lambda store: store.gc().removed,
}


def refusal_of(store, name):
    with pytest.raises(errors.UnknownError) as refused:
        store.resolve(name)
    return str(refused.value)


@pytest.fixture
def filled(store, tmp_path):
    """Return a store whose catalog is open and has an empty cache."""
    store.add(adapter(1), name="x")
    store.add(adapter(2, bank=1))
    store.entries()
    connection(store).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection(store).execute("PRAGMA cache_size = 0")
    connection(store).execute("PRAGMA shrink_memory")
    return store


def connection(store):
    return store._catalog._database._connection


def overwrite(path):
    size = os.path.getsize(path)
    with open(path, "r+b") as stream:
        stream.write(b"no database " * (size // 12))


def cut_off(path):
    os.truncate(path, 4096)


def drop_tables(path):
    with sqlite3.connect(path) as other:
        for table in ("adapters", "names", "banks"):
            other.execute(f"DROP TABLE {table}")


def fill_with_texts(path):
    """Fill the tables with rows of values with wrong types."""
    with sqlite3.connect(path) as other:
        other.execute("UPDATE adapters SET digest = 'x' || id, metadata = '{'")
        other.execute("UPDATE names SET digest = 7")


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("damage", [overwrite, cut_off, drop_tables])
def test_a_catalog_that_is_damaged_while_it_is_open_is_rebuilt(filled, tmp_path, damage, read):
    before = READS[read](filled)
    filled.entries()
    damage(tmp_path / "s" / FILE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert READS[read](filled) == before
        assert READS[read](filled) == before
    assert {str(each.message).split(" (")[0].split("/")[-1] for each in caught} <= {
        f"{FILE} is damaged; it is rebuilt from the objects",
        f"{FILE}",  # on a disk error, it is kept in memory
    }


@pytest.mark.parametrize("read", ["entries", "names"])
def test_impossible_rows_count_as_damage(filled, tmp_path, read):
    before = READS[read](filled)
    fill_with_texts(tmp_path / "s" / FILE)
    with pytest.warns(errors.VbfmtWarning, match="is damaged; it is rebuilt"):
        assert READS[read](filled) == before


@pytest.mark.parametrize("damage", [overwrite, cut_off, drop_tables])
def test_an_adapter_can_be_added_if_the_catalog_is_damaged(filled, tmp_path, damage):
    damage(tmp_path / "s" / FILE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.VbfmtWarning)
        digest = filled.add(adapter(3), name="z")
        filled.untag("x")
        filled.close()
        assert filled.names() == {"z": digest}
    with Store(tmp_path / "s") as again:
        assert again.names() == {"z": digest}
        assert again.stats().adapters == 3


def test_a_catalog_that_another_process_has_locked_is_one_error(filled, tmp_path, monkeypatch):
    monkeypatch.setattr(database, "_PATIENCE", 0.05)
    filled.close()
    filled.entries()
    other = sqlite3.connect(tmp_path / "s" / FILE)
    other.execute("BEGIN IMMEDIATE")
    for work in (*READS.values(), lambda store: store.untag("x")):
        with pytest.raises(
            errors.StoreError, match="cannot use the catalog in .*locked; stop other"
        ):
            work(filled)
    with pytest.raises(errors.StoreError, match="locked"):
        Store(tmp_path / "s").entries()
    assert filled.add(adapter(3), name="z") == vbfmt.digest(adapter(3))
    filled.close()  # pending changes of the catalog are lost, but the objects exist
    other.rollback()
    other.close()
    assert filled.names()["z"] == vbfmt.digest(adapter(3))


class Failing:
    """A connection on which every statement fails."""

    in_transaction = False

    def __init__(self, message):
        self.message = message

    def execute(self, *_):
        raise sqlite3.OperationalError(self.message)

    def close(self):
        raise sqlite3.OperationalError(self.message)


@pytest.mark.parametrize(
    ("message", "warning"),
    [
        ("database or disk is full", "it is kept in memory"),
        ("disk I/O error", "it is kept in memory"),
        ("attempt to write a readonly database", "it is kept in memory"),
        ("database disk image is malformed", "it is rebuilt"),
    ],
)
@pytest.mark.parametrize("read", READS)
def test_queries_are_answered_although_the_disk_fails(filled, message, warning, read):
    before = READS[read](filled)
    filled.entries()
    filled._catalog._database._connection = Failing(message)
    with pytest.warns(errors.VbfmtWarning, match=warning):
        assert READS[read](filled) == before


def test_a_failure_after_the_rebuild_is_one_error(filled, monkeypatch):
    monkeypatch.setattr(
        database.Database, "_made", lambda self, path: Failing("database disk image is malformed")
    )
    filled._catalog._database._connection = Failing("database disk image is malformed")
    with (
        warnings.catch_warnings(),
        pytest.raises(
            errors.StoreError, match=r"cannot use the catalog in .* malformed; stop other"
        ),
    ):
        warnings.simplefilter("ignore", errors.VbfmtWarning)
        filled.entries()


def test_a_bank_that_is_missing_in_the_catalog_is_not_collected(filled, tmp_path):
    """A damaged catalog may still give answers, but a removed bank could not be restored."""
    filled.tag("y", filled.entries()[0].digest)
    filled.tag("y2", filled.entries()[1].digest)
    with sqlite3.connect(tmp_path / "s" / FILE) as other:
        other.execute("UPDATE adapters SET bank = 'x'")
    with pytest.warns(errors.VbfmtWarning, match="lacked banks that adapters use"):
        filled.gc(grace=0)
    assert all(report.ok for report in filled.verify())
    assert filled.gc(grace=0).removed == ()


@pytest.mark.parametrize("limit", [-1, 0, 10**30])
def test_any_limit_is_accepted(filled, limit):
    assert len(filled.entries(limit=limit)) == (2 if limit > 2 else 0)


def test_unknown_texts_find_nothing(filled):
    assert filled.entries(base_model="\udcff") == []
    assert filled.entries(metadata={"\0": "\ud800"}) == []


def test_a_store_that_another_thread_closes_is_reopened(filled):
    before = filled.entries()
    catalog = filled._open_catalog()
    filled.close()
    catalog.refresh()
    assert filled.entries() == before
    assert filled._open_catalog() is catalog


def test_a_catalog_in_memory_that_is_closed_is_filled_again(filled):
    before = filled.names()
    filled._catalog._database._connection = Failing("disk I/O error")
    with pytest.warns(errors.VbfmtWarning, match="in memory"):
        assert filled.names() == before
    catalog = filled._open_catalog()
    catalog.close()
    assert catalog.names() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_opens_a_new_connection(filled):
    """SQLite forbids using or closing a connection that was opened before the fork."""
    before = filled.entries()
    connection = filled._catalog._database._connection
    child = os.fork()
    if child == 0:
        same = filled.entries() == before
        own = filled._catalog._database._connection is not connection
        filled.close()
        os._exit(0 if same and own else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert filled._catalog._database._connection is connection
    assert filled.entries() == before


def test_a_transaction_that_sqlite_has_rolled_back(filled):
    def work(connection):
        connection.execute("ROLLBACK")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        filled._open_catalog()._database.change(work)
    assert filled.stats().adapters == 2


@pytest.mark.parametrize("how", ["closed", "open"])
@pytest.mark.parametrize("damage", [overwrite, drop_tables])
def test_a_damaged_catalog_is_rebuilt_though_its_warning_is_an_error(filled, tmp_path, damage, how):
    before = filled.names()
    if how == "closed":
        filled.close()
    damage(tmp_path / "s" / FILE)
    with warnings.catch_warnings(), pytest.raises(errors.VbfmtWarning):
        warnings.simplefilter("error", errors.VbfmtWarning)
        filled.names()
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.VbfmtWarning)
        assert filled.names() == before
        assert len(filled.entries()) == 2
