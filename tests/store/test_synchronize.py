"""The catalog is synchronized with the objects, even if these change meanwhile."""

from __future__ import annotations

import os

import pytest

from tests.store.adapters import adapter
from vbfmt import errors
from vbfmt.store import layout

ZEROS = "00" * 32


def test_other_files_are_not_in_the_catalog_and_verification_names_them(store):
    digest = store.add(adapter(1))
    strange = f"{layout.ADAPTERS}/00/note.txt"
    store._backend.create(strange, [b"text"])
    store.rebuild()
    assert [entry.digest for entry in store.entries()] == [digest]
    (report,) = [each for each in store.verify() if not each.ok]
    assert report.file == store._backend.address(strange)
    assert "not an object of a store" in str(report.problems[0])


def test_removed_banks_and_names_are_removed_from_the_catalog(store):
    store.add(adapter(1), name="x")
    digest = store.add(adapter(2, bank=1), name="y")
    assert store.stats().banks == 2
    (gone,) = {e.bank for e in store.entries()} - {
        e.bank for e in store.entries() if "y" in e.names
    }
    os.unlink(store._backend.address(layout.bank_key(gone)))
    os.unlink(store._backend.address(layout.name_key("x")))
    os.utime(store._backend.address(layout.bank_key(gone)[:8]), (0, 0))
    os.utime(os.path.dirname(store._backend.address(layout.name_key("x"))), (0, 0))
    with pytest.warns(errors.VbfmtWarning, match="that no longer exist"):
        assert store.stats().banks == 1
    assert store.names() == {"y": digest}


@pytest.mark.parametrize("key", [layout.adapter_key(f"sha256:{ZEROS}"), layout.name_key("x")])
def test_an_object_that_is_removed_after_listing_is_skipped(store, monkeypatch, key):
    digest = store.add(adapter(1), name="kept")
    store._backend.create(key, [b"soon gone"])
    backend = store._backend
    listed = {prefix: list(backend.entries(prefix)) for prefix in _groups(backend)}
    backend.delete(key)
    monkeypatch.setattr(backend, "entries", lambda prefix: iter(listed[prefix]))
    store.rebuild()
    assert [entry.digest for entry in store.entries()] == [digest]
    assert store.names() == {"kept": digest}


def _groups(backend):
    prefixes = (layout.ADAPTERS, layout.BANKS, layout.NAMES, layout.UNREFERENCED, layout.LEASES)
    return [*prefixes, *(key for prefix in prefixes for key in backend.stamps(prefix))]


@pytest.mark.parametrize("prefix", [layout.ADAPTERS, layout.NAMES])
def test_an_object_that_is_removed_during_verification_is_not_a_problem(store, monkeypatch, prefix):
    store.add(adapter(1), name="x")
    backend = store._backend
    listed = {each: list(backend.entries(each)) for each in _groups(backend)}
    (gone,) = listed[prefix]
    backend.delete(gone.key)
    if prefix == layout.ADAPTERS:
        store.untag("x")
        listed[layout.NAMES] = []
    monkeypatch.setattr(backend, "entries", lambda each: iter(listed[each]))
    assert [str(problem) for report in store.verify() for problem in report.problems] == []


def test_an_adapter_that_is_removed_while_it_is_opened_is_unknown(store, monkeypatch):
    digest = store.add(adapter(1), name="x")
    monkeypatch.setattr(store._backend, "content", lambda key: None)
    with pytest.raises(errors.UnknownError, match=f"no such adapter .*found {digest}"):
        store.open("x")


def test_a_missing_adapter_cannot_be_named(store):
    with pytest.raises(errors.UnknownError, match="no such adapter"):
        store.tag("x", f"sha256:{ZEROS}")
    assert store.names() == {}
