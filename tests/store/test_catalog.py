"""The catalog of a store: if it is lost, damaged or wrong, it is rebuilt from the objects."""

from __future__ import annotations

import contextlib
import os
import pickle
import sqlite3
import warnings

import pytest

import vbfmt
from tests.store.adapters import adapter
from vbfmt.store import ANY, Store, catalog, database, layout
from vbfmt.store.catalog import FILE


def test_a_lost_catalog_is_rebuilt_from_the_objects(store, tmp_path):
    for number in range(5):
        store.add(adapter(number, bank=number % 2), name=f"n{number}")
    before = store.entries(), store.names(), store.stats()
    store.close()
    for path in (tmp_path / "s").glob(f"{FILE}*"):
        path.unlink()
    again = store.entries(), store.names(), store.stats()
    assert [plain(e) for e in again[0]] == [plain(e) for e in before[0]]
    assert again[1:] == before[1:]
    store.rebuild()
    assert store.names() == before[1]


def plain(entry):
    return entry.digest, entry.size, entry.bank, entry.names, dict(entry.metadata)


def test_a_damaged_catalog_is_rebuilt_with_a_warning(store, tmp_path):
    digest = store.add(adapter(1), name="x")
    store.close()
    for path in (tmp_path / "s").glob(f"{FILE}*"):
        path.unlink()
    (tmp_path / "s" / FILE).write_bytes(b"no database" * 1000)
    with pytest.warns(vbfmt.errors.VbfmtWarning, match="is damaged; it is rebuilt"):
        assert store.names() == {"x": digest}


def test_a_catalog_that_disagrees_with_the_objects_is_corrected_with_a_warning(store, tmp_path):
    kept, lost = store.add(adapter(1), name="x"), store.add(adapter(2))
    store.entries()
    database = sqlite3.connect(tmp_path / "s" / FILE)
    database.execute("DELETE FROM adapters WHERE digest = ?", (bytes.fromhex(kept[7:]),))
    database.execute("DELETE FROM seen")
    database.commit()
    os.unlink(store.path(lost))
    os.utime(store.path(kept), (0, 0))
    with pytest.warns(
        vbfmt.errors.VbfmtWarning,
        match="it lacked 1 objects, and had 1 that no longer exist",
    ):
        (entry,) = store.entries()
    assert (entry.digest, entry.names) == (kept, ("x",))
    assert store.entries() == [entry]  # no further warning


def test_what_another_process_writes_is_seen(store, tmp_path):
    other = Store(tmp_path / "s")
    assert store.entries() == []
    digest = other.add(adapter(1), name="x")
    assert [entry.digest for entry in store.entries()] == [digest]
    other.add(adapter(2), name="x", replaces=ANY)
    assert store.names() == {"x": vbfmt.digest(adapter(2))}
    other.untag("x")
    assert store.names() == {}


def test_a_store_that_is_pickled_is_opened_again(store):
    digest = store.add(adapter(1), name="x")
    assert pickle.loads(pickle.dumps(store)).resolve("x") == digest


def test_a_catalog_of_another_version_is_rebuilt(store, tmp_path):
    store.add(adapter(1), name="x")
    before = store.names()
    store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "s" / FILE)) as database, database:
        database.execute("PRAGMA user_version = 1")
        database.execute("CREATE TABLE of_old (x)")
    with Store(tmp_path / "s") as again:
        assert again.names() == before
    with contextlib.closing(sqlite3.connect(tmp_path / "s" / FILE)) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        assert ("of_old",) not in tables
        assert ("adapters",) in tables


@pytest.mark.parametrize(
    ("message", "is_writable", "warning"),
    [("unable to open database file", False, None), ("disk I/O error", True, "kept in memory")],
)
def test_a_catalog_that_cannot_be_written_is_kept_in_memory(
    store, tmp_path, monkeypatch, message, is_writable, warning
):
    digest = store.add(adapter(1), name="x")
    store.close()
    real = database.sqlite3.connect

    def connect(path, **options):
        if path != ":memory:":
            raise sqlite3.OperationalError(message)
        return real(path, **options)

    monkeypatch.setattr(database.sqlite3, "connect", connect)
    monkeypatch.setattr(database.os, "access", lambda *_: is_writable)
    with warnings.catch_warnings(record=True) as caught, Store(tmp_path / "s") as again:
        warnings.simplefilter("always")
        assert again.names() == {"x": digest}
    assert [warning in str(each.message) for each in caught] == [True] * bool(warning)


def test_many_changes_are_written_before_the_process_ends(store, tmp_path, monkeypatch):
    store.add(adapter(0))
    monkeypatch.setattr(catalog, "_MOST_NOTES", 2)
    monkeypatch.setattr(catalog, "_LONGEST_WAIT", 3600.0)
    for number in range(1, 5):
        store.add(adapter(number))
    with contextlib.closing(sqlite3.connect(tmp_path / "s" / FILE)) as other:
        (found,) = other.execute("SELECT count(*) FROM adapters").fetchone()
    assert found >= 3


@pytest.fixture
def settled(store, tmp_path):
    """Return a store with a current catalog: the objects are not listed again unless a file
    changes."""
    store.add(adapter(1), name="x")
    store.close()
    for path in (tmp_path / "s").rglob("*"):
        os.utime(path, (1e9, 1e9))
    store.entries()
    return store


def test_a_name_that_could_not_be_removed_is_still_listed(settled):
    with pytest.raises(vbfmt.errors.ConflictError):
        settled.untag("x", expected=vbfmt.digest(adapter(2)))
    assert settled.names() == {"x": vbfmt.digest(adapter(1))}


@pytest.mark.parametrize("key", [layout.name_key("x"), layout.adapter_key, layout.bank_key])
def test_an_object_that_a_killed_process_did_not_remove_is_still_listed(settled, key):
    """The process is killed after it has changed the catalog and before it removes the file."""
    before = plain(*settled.entries()), settled.stats()
    if key is layout.adapter_key:
        key = key(before[0][0])
    elif key is layout.bank_key:
        key = key(before[0][2])
    settled._open_catalog().forget(key)
    settled.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the objects are older than the catalog
        assert (plain(*settled.entries()), settled.stats()) == before


def test_late_notes_of_one_process_do_not_hide_later_changes_of_others(store, tmp_path):
    one, two = store.add(adapter(1), name="x"), store.add(adapter(2))
    with Store(tmp_path / "s") as other:
        other.tag("x", two, replaces=one)
        other.gc(grace=0)
        for path in (tmp_path / "s").rglob("*"):
            os.utime(path, (1e9, 1e9))
        assert other.names() == {"x": two}
        store.close()  # this writes its pending changes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert other.names() == {"x": two}
        assert [entry.digest for entry in other.entries()] == [two]
