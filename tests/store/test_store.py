"""Adding and opening adapters by name and digest, in a folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import vbfmt
from tests.store.adapters import adapter
from vbfmt import errors
from vbfmt._files import banks as bank_files


def test_an_adapter_is_opened_by_name_and_digest(store):
    digest = store.add(adapter(1), name="team/alice")
    assert digest == vbfmt.digest(adapter(1))
    assert store.resolve("team/alice") == store.resolve(digest) == digest
    assert store.open("team/alice") == store.open(digest) == adapter(1)
    assert vbfmt.load(store.path(digest), banks=store, digest=digest) == adapter(1)


@pytest.mark.parametrize("form", ["embedded", "external"])
def test_a_file_of_either_form_is_added_without_its_bank(store, tmp_path, form):
    vbfmt.save(adapter(1), tmp_path / "x", bank=form)
    digest = store.add(tmp_path / "x")
    assert digest == vbfmt.digest(adapter(1))
    assert Path(store.path(digest)).read_bytes() == vbfmt.dumps(adapter(1), bank="external")


def test_a_thin_file_uses_a_bank_that_is_already_in_the_store(store, tmp_path):
    store.add(adapter(1))
    (tmp_path / "x").write_bytes(vbfmt.dumps(adapter(2), bank="external"))
    assert store.open(store.add(tmp_path / "x")) == adapter(2)
    (tmp_path / "x").write_bytes(vbfmt.dumps(adapter(2, bank=1), bank="external"))
    with pytest.raises(errors.BankError, match="vector bank not found"):
        store.add(tmp_path / "x")


def test_each_adapter_and_each_bank_is_stored_once(store):
    for _ in range(2):
        for number in range(4):
            store.add(adapter(number, bank=number % 2))
    stats = store.stats()
    assert (stats.adapters, stats.banks, stats.names) == (4, 2, 0)
    found = [store.open(entry.digest) for entry in store.entries()]
    assert len({id(one.bank) for one in found}) == 2


def test_entries_are_filtered_by_their_fields(store):
    for number in range(6):
        one = adapter(number, bank=number % 2, base=f"base-{number % 3}", task=f"{number % 2}")
        store.add(one, name=f"n{number}")
    entries = store.entries(base_model="base-1")
    assert {entry.names for entry in entries} == {("n1",), ("n4",)}
    assert len(store.entries(metadata={"task": "0"})) == 3
    assert len(store.entries(metadata={"task": "0", "number": "4"})) == 1
    assert len(store.entries(bank=entries[0].bank)) == 3
    assert len(store.entries(limit=2)) == 2
    assert store.entries(added_since=time.time() + 9) == []
    (one,) = store.entries(metadata={"number": "5"})
    assert (one.h, one.b, one.k, one.rows, one.modules) == (16, 8, 2, 4, 1)
    assert one.size == os.path.getsize(store.path(one.digest))
    assert store.entries(base_model="no such") == []


def test_a_damaged_file_is_not_added(store, tmp_path):
    data = bytearray(vbfmt.dumps(adapter(1)))
    data[-1] ^= 1
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(errors.ChecksumError, match=str(tmp_path / "x")):
        store.add(tmp_path / "x", name="x")
    assert store.stats().adapters == 0


def test_every_damaged_object_is_found(store):
    bank_files._shared.clear()  # a bank in memory is not read again
    digest = store.add(adapter(1), name="x")
    other = store.add(adapter(2, bank=1))
    assert len(list(store.verify())) == 5
    assert all(report.ok for report in store.verify())
    (entry,) = [entry for entry in store.entries() if entry.digest == digest]
    for path in (store.path(digest), store.where(entry.bank)):
        data = bytearray(Path(path).read_bytes())
        data[len(data) // 2] ^= 1
        with open(path, "wb") as stream:
            stream.write(data)
        bad = [report for report in store.verify() if not report.ok]
        assert path in {report.file for report in bad} | {p.file for r in bad for p in r.problems}
        with pytest.raises(errors.ChecksumError, match=path):
            store.open("x")
        data[len(data) // 2] ^= 1
        with open(path, "wb") as stream:
            stream.write(data)
    # The file of one adapter has the name of another.
    os.replace(store.path(other), store.path(digest))
    bad = {report.file for report in store.verify() if not report.ok}
    assert bad == {store.path(digest)}
    with pytest.raises(errors.DigestError):
        store.open("x")
