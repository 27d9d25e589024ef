"""Names in a store: which ones are valid, and how they change."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import vbfmt
from tests.store.adapters import adapter
from vbfmt import errors
from vbfmt.store import ANY, layout, names
from vbfmt.store.catalog import FILE
from vbfmt.store.folder import Folder


def test_a_name_changes_by_compare_and_swap(store):
    one, two, three = (store.add(adapter(number)) for number in range(3))
    store.tag("x", one)
    store.tag("x", one)  # no change
    with pytest.raises(errors.ConflictError, match=f"found {one}, expected a new name"):
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


def test_of_many_concurrent_changes_of_a_name_one_wins(store):
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


def test_find_accepts_any_text(store):
    """Unlike `resolve`, it raises no errors for names and makes no suggestions."""
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


@pytest.mark.parametrize("name", ["con", "NUL.v2", "com1", "team/alice."])
def test_a_name_that_windows_reserves_is_refused_there(monkeypatch, name):
    layout.require_name(name)
    monkeypatch.setattr(layout.sys, "platform", "win32")
    layout.require_name("console")
    layout.require_name("team/nul")
    with pytest.raises(errors.StoreError, match="Windows"):
        layout.require_name(name)


@pytest.mark.parametrize("digest", ["x", "sha256:", "sha256:../../x", "sha256:" + "A" * 64])
def test_an_invalid_digest_is_refused(store, digest):
    with pytest.raises(errors.StoreError, match="not a digest"):
        store.path(digest)
    with pytest.raises(errors.StoreError, match="not a digest"):
        store.tag("x", digest)


def test_the_error_for_an_unknown_name_has_suggestions(store):
    for name in ("alice", "bob", "team/carol"):
        store.add(adapter(1), name=name)
    with pytest.raises(errors.UnknownError, match="such as alice"):
        store.open("alcie")
    with pytest.raises(LookupError, match="no such adapter"):
        store.open("sha256:" + "0" * 64)
    with pytest.raises(errors.UnknownError):
        store.lease("sha256:" + "0" * 64)
    assert not list(store._backend.entries(layout.LEASES))


def test_a_damaged_name_is_reported_and_can_be_repaired(store):
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


def test_setting_a_name_that_others_keep_changing_fails(store, monkeypatch):
    digest = store.add(adapter(1), name="x")
    tries = []
    monkeypatch.setattr(store._backend, "replace", lambda *_: bool(tries.append(1)))
    with pytest.raises(errors.ConflictError, match="points to another digest") as error:
        store.tag("x", digest, replaces=ANY)
    assert error.value.found == digest
    assert len(tries) == names._ATTEMPTS


def test_a_name_that_is_created_meanwhile_is_moved(store, monkeypatch):
    one, two = (store.add(adapter(number)) for number in range(2))
    backend, found = store._backend, store._backend.found
    key = layout.name_key("x")

    def comes_meanwhile(wanted):
        before = found(wanted)
        if wanted == key and before is None:
            names.write(backend, "x", one, None)
        return before

    monkeypatch.setattr(backend, "found", comes_meanwhile)
    names.overwrite(backend, "x", two)
    assert names.read(backend, "x")[0].digest == two


def test_a_name_that_changes_or_disappears_while_it_is_removed(store, monkeypatch):
    digest = store.add(adapter(1), name="x")
    backend = store._backend
    with monkeypatch.context() as patch:
        patch.setattr(backend, "remove", lambda *_: False)
        with pytest.raises(errors.ConflictError, match="points to another digest"):
            store.untag("x")
    assert store.names() == {"x": digest}
    listed = list(backend.entries(layout.NAMES))
    assert names.remove(backend, "x", None)
    assert not names.remove(backend, "x", None)
    monkeypatch.setattr(backend, "entries", lambda prefix: iter(listed))
    assert list(names.every(backend)) == []


def test_any_digest_may_also_be_none(store):
    digest = store.add(adapter(1))
    store.tag("new", digest, replaces=ANY)
    assert store.names() == {"new": digest}


def test_an_adapter_is_not_added_if_its_name_is_taken(store):
    one = store.add(adapter(1), name="a")
    for name, replaces in (("a", None), ("A", None), ("b", one), ("a", "sha256:" + "0" * 64)):
        with pytest.raises(errors.ConflictError):
            store.add(adapter(2), name=name, replaces=replaces)
    assert store.stats().adapters == 1
    two = store.add(adapter(2), name="a", replaces=one)
    assert store.resolve("a") == two


def test_the_advice_is_for_python_users(store):
    store.add(adapter(1), name="a")
    with pytest.raises(errors.ConflictError, match="`replaces=ANY`") as error:
        store.add(adapter(2), name="a")
    assert "--" not in str(error.value)


def test_a_record_in_the_file_of_another_name_is_damaged(store):
    """It would protect a different adapter from collection than the one that the file name
    implies."""
    store.add(adapter(1), name="x")
    store.add(adapter(2), name="y")
    files = [Path(store._backend.address(layout.name_key(name))) for name in "xy"]
    files[0].write_bytes(files[1].read_bytes())
    for work in (store.gc, lambda: store.find("x"), lambda: store.untag("x")):
        with pytest.raises(errors.StoreError, match="with the name of the file"):
            work()
    with pytest.warns(errors.VbfmtWarning, match="with the name of the file"):
        assert list(store.names()) == ["y"]
    (bad,) = [report for report in store.verify() if not report.ok]
    assert bad.file == str(files[0])
    assert store.tag("x", vbfmt.digest(adapter(1)), replaces=ANY) is None
    assert store.gc(grace=0).removed == ()
    assert store.open("x") == adapter(1)


def test_a_name_that_changes_while_it_is_moved_is_moved_again(store, monkeypatch, caplog):
    caplog.set_level("INFO", "vbfmt")
    one, two = store.add(adapter(1), name="x"), store.add(adapter(2))
    answers = iter([False, False])
    replace = Folder.replace
    monkeypatch.setattr(Folder, "replace", lambda *given: next(answers, True) and replace(*given))
    store.tag("x", two, replaces=ANY)
    assert store.resolve("x") == two != one
    assert len([text for text in caplog.messages if "name x" in text]) == 2


def test_a_name_that_never_stops_changing_is_refused(store, monkeypatch):
    one, two = store.add(adapter(1), name="x"), store.add(adapter(2))
    monkeypatch.setattr(Folder, "replace", lambda *_: False)
    with pytest.raises(errors.ConflictError, match="expected unchanged while it is written"):
        store.tag("x", two, replaces=ANY)
    assert store.resolve("x") == one
