"""The catalog: what is lost, damaged or wrong in it is read from the objects."""

from __future__ import annotations

import os
import pickle
import sqlite3

import pytest

import vbfmt
from tests.store.adapters import adapter
from vbfmt.store import ANY, Store
from vbfmt.store.catalog import FILE


def test_a_lost_catalog_is_made_again_from_the_objects(store, tmp_path):
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


def test_a_damaged_catalog_is_made_again_and_said(store, tmp_path):
    digest = store.add(adapter(1), name="x")
    store.close()
    for path in (tmp_path / "s").glob(f"{FILE}*"):
        path.unlink()
    (tmp_path / "s" / FILE).write_bytes(b"no database" * 1000)
    with pytest.warns(vbfmt.errors.VbfmtWarning, match="is damaged; it is rebuilt"):
        assert store.names() == {"x": digest}


def test_a_catalog_that_disagrees_with_the_objects_is_corrected_and_said(store, tmp_path):
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
        match="1 objects were missing from it, and 1 in it are gone",
    ):
        (entry,) = store.entries()
    assert (entry.digest, entry.names) == (kept, ("x",))
    assert store.entries() == [entry]  # nothing to say any more


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
