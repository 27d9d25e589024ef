"""Adapters by name and digest, in a folder."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import threading
import time
import warnings
from pathlib import Path

import pytest

import vbfmt
from tests.store.adapters import adapter
from vbfmt import errors
from vbfmt.store import ANY, Store, garbage, layout
from vbfmt.store.catalog import FILE


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def store(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Store(tmp_path / "s", create=True) as store:
            yield store


def test_what_is_added_is_opened_by_name_and_digest(store):
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


def test_a_thin_file_whose_bank_is_in_the_store_already_needs_no_other(store, tmp_path):
    store.add(adapter(1))
    (tmp_path / "x").write_bytes(vbfmt.dumps(adapter(2), bank="external"))
    assert store.open(store.add(tmp_path / "x")) == adapter(2)
    (tmp_path / "x").write_bytes(vbfmt.dumps(adapter(2, bank=1), bank="external"))
    with pytest.raises(errors.BankError, match="the vector bank is not here"):
        store.add(tmp_path / "x")


def test_each_adapter_and_each_bank_is_there_once(store):
    for _ in range(2):
        for number in range(4):
            store.add(adapter(number, bank=number % 2))
    stats = store.stats()
    assert (stats.adapters, stats.banks, stats.names) == (4, 2, 0)
    found = [store.open(entry.digest) for entry in store.entries()]
    assert len({id(one.bank) for one in found}) == 2


def test_entries_are_found_by_what_they_say(store):
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


# Names


def test_a_name_changes_by_compare_and_swap(store):
    one, two, three = (store.add(adapter(number)) for number in range(3))
    store.tag("x", one)
    store.tag("x", one)  # as it is already
    with pytest.raises(errors.ConflictError, match=f"found {one}, expected no such name"):
        store.tag("x", two)
    with pytest.raises(errors.ConflictError, match=f"found {one}, expected {three}"):
        store.tag("x", two, replaces=three)
    store.tag("x", two, replaces=one)
    assert store.resolve("x") == two
    store.tag("x", three, replaces=ANY)
    assert store.names() == {"x": three}
    with pytest.raises(errors.ConflictError):
        store.untag("x", expected=one)
    store.untag("x", expected=three)
    assert store.names() == {}
    with pytest.raises(errors.UnknownError):
        store.untag("x")
    with pytest.raises(errors.ConflictError, match="expected " + one):
        store.tag("x", two, replaces=one)


def test_of_many_that_change_one_name_at_once_one_wins_each_time(store):
    digests = [store.add(adapter(number)) for number in range(8)]
    store.tag("x", digests[0])
    wins = []

    def work(mine):
        for _ in range(10):
            before = store.resolve("x")
            try:
                store.tag("x", mine, replaces=before)
                wins.append((before, mine))
            except errors.ConflictError:
                pass

    threads = [threading.Thread(target=work, args=(digest,)) for digest in digests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wins
    assert store.resolve("x") in digests
    assert all(report.ok for report in store.verify())


def test_names_that_differ_only_in_case_are_refused(store):
    digest = store.add(adapter(1), name="Alice")
    for replaces in (None, digest):
        with pytest.raises(errors.ConflictError, match="differs only in case"):
            store.tag("alice", digest, replaces=replaces)
    with pytest.raises(errors.UnknownError, match="such as Alice"):
        store.resolve("alice")
    assert store.names() == {"Alice": digest}


def test_find_answers_for_any_text(store):
    """Unlike `resolve` it has no errors for names, and suggests none."""
    digest = store.add(adapter(1), name="team/Alice")
    assert store.find("team/Alice") == digest
    for name in ("team/alice", "nobody", digest, *HOSTILE):
        assert store.find(name) is None


HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "a/../b",
    "/etc/passwd",
    "a//b",
    "a/",
    "a\\b",
    "a\0b",
    "a\nb",
    "%2e%2e",
    "a b",
    "ä",
    "-rf",
    ".hidden",
    "x" * 181,
    "sha256:" + "0" * 64,
    "~root",
    "C:x",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_could_leave_the_store_is_refused_and_nothing_changes(store, name, tmp_path):
    before = {path for path in tmp_path.rglob("*") if not path.name.startswith(FILE)}
    work = [lambda: store.add(adapter(1), name=name), lambda: store.tag(name, "sha256:" + "0" * 64)]
    if not name.startswith("sha256:"):
        work += [lambda: store.resolve(name), lambda: store.open(name), lambda: store.untag(name)]
    for one in work:
        with pytest.raises(errors.StoreError) as error:
            one()
        assert "\n" not in str(error.value)
    assert {path for path in tmp_path.rglob("*") if not path.name.startswith(FILE)} == before


@pytest.mark.parametrize("digest", ["x", "sha256:", "sha256:../../x", "sha256:" + "A" * 64])
def test_what_is_no_digest_is_refused(store, digest):
    with pytest.raises(errors.StoreError, match="not a digest"):
        store.path(digest)
    with pytest.raises(errors.StoreError, match="not a digest"):
        store.tag("x", digest)


def test_an_unknown_name_or_digest_says_what_is_near(store):
    for name in ("alice", "bob", "team/carol"):
        store.add(adapter(1), name=name)
    with pytest.raises(errors.UnknownError, match="such as alice"):
        store.open("alcie")
    with pytest.raises(LookupError, match="no such adapter"):
        store.open("sha256:" + "0" * 64)
    with pytest.raises(errors.UnknownError):
        store.lease("sha256:" + "0" * 64)
    assert not list(store._backend.entries(layout.LEASES))


def test_a_damaged_name_is_said_and_can_be_mended(store):
    digest = store.add(adapter(1), name="x")
    path = store._backend.address(layout.name_key("x"))
    with open(path, "w") as stream:
        stream.write("{")
    with pytest.raises(errors.StoreError, match="record is damaged"):
        store.resolve("x")
    with pytest.raises(errors.StoreError):
        store.gc(grace=0)
    assert store.open(digest) == adapter(1)
    (problem,) = [report for report in store.verify() if not report.ok]
    assert problem.file == path
    store.tag("x", digest, replaces=ANY)
    assert store.open("x") == adapter(1)


# What is no store


def test_a_folder_that_is_no_store(tmp_path):
    with pytest.raises(errors.StoreError, match=r"not a vbfmt store in .*: found no store.json"):
        Store(tmp_path)
    with pytest.raises(errors.StoreError):
        Store(tmp_path / "nowhere")
    (tmp_path / "something").write_bytes(b"x")
    with pytest.raises(errors.StoreError, match="not empty"):
        Store(tmp_path, create=True)
    assert os.listdir(tmp_path) == ["something"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"vbfmt store": "1"}', '"x"', "null"])
def test_a_store_file_that_says_something_else(tmp_path, content):
    (tmp_path / layout.ROOT).write_text(content)
    with pytest.raises(errors.StoreError, match="not a vbfmt store"):
        Store(tmp_path)


def test_a_newer_layout(store, tmp_path):
    (tmp_path / "s" / layout.ROOT).write_text(json.dumps({"vbfmt store": 2}))
    with pytest.raises(errors.VersionError, match="found 2, expected at most 1; update vbfmt"):
        Store(tmp_path / "s")


# The catalog


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
    with pytest.warns(vbfmt.errors.VbfmtWarning, match="is damaged; it is made anew"):
        assert store.names() == {"x": digest}


def test_a_catalog_that_disagrees_with_the_objects_is_corrected_and_said(store, tmp_path):
    kept, lost = store.add(adapter(1), name="x"), store.add(adapter(2))
    store.entries()
    database = sqlite3.connect(tmp_path / "s" / FILE)
    database.execute("DELETE FROM adapters WHERE digest = ?", (kept,))
    database.execute("DELETE FROM seen")
    database.commit()
    os.unlink(store.path(lost))
    os.utime(store.path(kept), (0, 0))
    with pytest.warns(
        vbfmt.errors.VbfmtWarning,
        match="did not know 1 things that are there and knew 1 that are not",
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


# Damage


def test_every_damaged_object_is_found(store):
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
    # An adapter under another's name.
    os.replace(store.path(other), store.path(digest))
    bad = {report.file for report in store.verify() if not report.ok}
    assert bad == {store.path(digest)}
    with pytest.raises(errors.DigestError):
        store.open("x")


# Garbage


def test_what_nothing_needs_goes_after_its_time_of_grace_and_not_before(store, monkeypatch):
    digest = store.add(adapter(1), name="x")
    kept = store.add(adapter(2, bank=1), name="y")
    store.untag("x")
    now = time.time()
    assert store.gc(grace=100).removed == ()
    monkeypatch.setattr(garbage.time, "time", lambda: now + 99)
    assert store.gc(grace=100).removed == ()
    assert store.open(digest) == adapter(1)
    monkeypatch.setattr(garbage.time, "time", lambda: now + 101)
    done = store.gc(grace=100)
    assert done.removed == (layout.adapter_key(digest),)
    assert store.gc(grace=100).waiting == 1  # its bank: from now on
    monkeypatch.setattr(garbage.time, "time", lambda: now + 300)
    assert len(store.gc(grace=100).removed) == 1
    assert store.stats().banks == 1
    assert store.open("y") == adapter(2, bank=1)
    assert [entry.digest for entry in store.entries()] == [kept]
    assert all(report.ok for report in store.verify())


@pytest.mark.parametrize("again", ["add", "tag", "lease"])
def test_naming_adding_or_leasing_it_again_starts_the_time_anew(store, monkeypatch, again):
    digest = store.add(adapter(1))
    now = time.time()
    store.gc(grace=100)
    if again == "add":
        store.add(adapter(1))
    elif again == "tag":
        store.tag("x", digest)
        store.untag("x")
    else:
        store.lease(digest).close()
    monkeypatch.setattr(garbage.time, "time", lambda: now + 200)
    assert store.gc(grace=100).removed == ()
    monkeypatch.setattr(garbage.time, "time", lambda: now + 400)
    assert store.gc(grace=100).removed == (layout.adapter_key(digest),)


def test_what_is_leased_stays_and_what_ended_does_not(store, monkeypatch):
    digest = store.add(adapter(1))
    with store.lease(digest, seconds=50) as lease:
        assert store.gc(grace=0).removed == ()
        now = time.time()
        monkeypatch.setattr(garbage.time, "time", lambda: now + 40)
        lease.renew(50)
        monkeypatch.setattr(garbage.time, "time", lambda: now + 80)
        assert store.gc(grace=0).removed == ()
        monkeypatch.setattr(garbage.time, "time", lambda: now + 100)
        assert len(store.gc(grace=0).removed) == 2
        with pytest.raises(errors.ConflictError, match="the lease had ended"):
            lease.renew()
    with pytest.raises(errors.UnknownError):
        store.open(digest)
    with pytest.raises(errors.StoreError, match="a lease's time"):
        store.lease(store.add(adapter(1)), seconds=-1)


def test_a_collector_that_was_killed_while_it_removed_keeps_nobody_waiting_for_ever(
    store, monkeypatch
):
    digest = store.add(adapter(1))
    key = layout.adapter_key(digest)
    now = time.time()
    store.gc(grace=100)
    assert garbage.claim(store._backend, key, now + 1, now)  # and then it died
    monkeypatch.setattr(garbage, "_PATIENCE", 0.2)
    assert store.add(adapter(1)) == digest
    assert store.open(digest) == adapter(1)
    # The object was removed, its mark was not.
    store.gc(grace=100)
    assert garbage.claim(store._backend, key, now + 9, time.time())
    store._open_catalog().forget(key)
    store._backend.delete(key)
    time.sleep(0.3)
    store.gc(grace=100)
    assert garbage.mark_of(store._backend, key) is None
    assert store.open(store.add(adapter(1))) == adapter(1)


def test_a_reader_never_loses_what_it_has_open(store):
    digest = store.add(adapter(1))
    path = store.path(digest)
    found = store.open(digest)
    store.gc(grace=0)
    assert not os.path.exists(path)
    assert found == adapter(1)
