"""Garbage collection: which objects are removed, and when."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.store.adapters import adapter
from vbfmt import errors
from vbfmt.store import garbage, layout


def test_an_unused_object_is_removed_only_after_the_grace_period(store, monkeypatch):
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
    assert store.gc(grace=100).waiting == 1  # the grace period of its bank starts now
    monkeypatch.setattr(garbage.time, "time", lambda: now + 300)
    assert len(store.gc(grace=100).removed) == 1
    assert store.stats().banks == 1
    assert store.open("y") == adapter(2, bank=1)
    assert [entry.digest for entry in store.entries()] == [kept]
    assert all(report.ok for report in store.verify())


@pytest.mark.parametrize("again", ["add", "tag", "lease"])
def test_naming_adding_or_leasing_restarts_the_grace_period(store, monkeypatch, again):
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


def test_a_leased_object_is_kept_until_the_lease_ends(store, monkeypatch):
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
        with pytest.raises(errors.ConflictError, match="the lease has expired"):
            lease.renew()
    with pytest.raises(errors.UnknownError):
        store.open(digest)
    with pytest.raises(errors.StoreError, match="invalid duration of a lease"):
        store.lease(store.add(adapter(1)), seconds=-1)


def test_nobody_waits_forever_for_a_killed_collector(store, monkeypatch):
    digest = store.add(adapter(1))
    key = layout.adapter_key(digest)
    now = time.time()
    store.gc(grace=100)
    assert garbage.claim(store._backend, key, now + 1, now)  # the collector is killed here
    monkeypatch.setattr(garbage, "_PATIENCE", 0.2)
    assert store.add(adapter(1)) == digest
    assert store.open(digest) == adapter(1)
    # The object was removed, but its mark was not.
    store.gc(grace=100)
    assert garbage.claim(store._backend, key, now + 9, time.time())
    store._open_catalog().forget(key)
    store._backend.delete(key)
    time.sleep(0.3)
    store.gc(grace=100)
    assert garbage.mark_of(store._backend, key, time.time()) is None
    assert store.open(store.add(adapter(1))) == adapter(1)


def test_a_lease_of_a_marked_object_restarts_its_grace_period(store, monkeypatch):
    digest = store.add(adapter(1))
    now = time.time()
    with store.lease(digest):
        garbage.note_unneeded(store._backend, layout.adapter_key(digest), now)
        assert store.gc(grace=100).kept == 2
        assert store.stats().unreferenced == 0
    monkeypatch.setattr(garbage.time, "time", lambda: now + 200)
    assert store.gc(grace=100).removed == ()


def test_the_mark_of_an_object_that_another_process_removes_is_kept(store):
    key = layout.adapter_key(store.add(adapter(1), name="x"))
    now = time.time()
    garbage.note_unneeded(store._backend, key, now)
    assert garbage.claim(store._backend, key, now, now)
    store.gc()
    mark, _ = garbage.mark_of(store._backend, key, now)
    assert mark.removing


def test_temporary_files_of_killed_processes_are_removed(store, tmp_path):
    store.lease(store.add(adapter(1), name="x"))
    left = [
        tmp_path / "s" / prefix / f".y.{'0' * 12}.partial"
        for prefix in layout.PREFIXES
        if (tmp_path / "s" / prefix).exists()
    ]
    for path in left:
        path.write_bytes(b"half")
        os.utime(path, (0, 0))
    store.gc()
    assert len(left) == 4
    assert not any(path.exists() for path in left)


def test_an_open_adapter_stays_readable(store):
    digest = store.add(adapter(1))
    path = store.path(digest)
    found = store.open(digest)
    store.gc(grace=0)
    assert not os.path.exists(path)
    assert found == adapter(1)


def test_using_an_object_that_is_being_removed_waits_and_then_fails(store):
    backend, key = store._backend, layout.adapter_key(store.add(adapter(1)))
    store.gc(grace=100)
    now = int(time.time())
    clock = iter(range(now, now + 10_000, 20)).__next__
    assert garbage.claim(backend, key, now + 2, now + 1000)
    with pytest.raises(errors.StorageError, match="another process is removing it") as error:
        garbage.revive(backend, key, now=clock, pause=0)
    assert error.value.file == backend.address(key)


def test_a_mark_that_changes_while_it_is_removed_is_read_again(store, monkeypatch):
    backend, key = store._backend, layout.adapter_key(store.add(adapter(1)))
    store.gc(grace=100)
    remove, tries = backend.remove, []

    def second_time(*arguments):
        tries.append(arguments)
        return len(tries) > 1 and remove(*arguments)

    monkeypatch.setattr(backend, "remove", second_time)
    assert garbage.revive(backend, key, pause=0)
    assert len(tries) == 2
    assert garbage.mark_of(backend, key, time.time()) is None


def test_only_marked_objects_that_nobody_else_removes_are_claimed(store):
    backend, key = store._backend, layout.adapter_key(store.add(adapter(1)))
    assert not garbage.claim(backend, key, 1e12, 0)
    garbage.note_unneeded(backend, key, 100)
    assert not garbage.claim(backend, key, 99, 200)
    assert garbage.claim(backend, key, 100, 200)
    assert not garbage.claim(backend, key, 1e12, 201)
    assert garbage.claim(backend, key, 0, 200 + garbage._PATIENCE)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"since": 1' + b"0" * 400 + b"}", b"[" * 99_999]
)
def test_a_damaged_mark_is_detected(store, content):
    backend, key = store._backend, layout.adapter_key(store.add(adapter(1)))
    backend.create(layout.unreferenced_key(key), [content])
    assert garbage.mark_of(backend, key, time.time())[0] is None


def test_a_clock_that_was_set_back_does_not_shorten_the_grace_period(store, monkeypatch):
    """The clock of a host without a battery starts in 1970 until it reaches a time server."""
    digest = store.add(adapter(1))
    now = time.time()
    monkeypatch.setattr(garbage.time, "time", lambda: 1000.0)
    store.gc(grace=100)
    monkeypatch.setattr(garbage.time, "time", lambda: now + 1)
    assert store.gc(grace=100).removed == ()
    monkeypatch.setattr(garbage.time, "time", lambda: now + 102)
    assert store.gc(grace=100).removed == (layout.adapter_key(digest),)


def test_nobody_waits_for_a_clock_that_was_set_back(store):
    backend, key = store._backend, layout.adapter_key(store.add(adapter(1)))
    now = time.time()
    garbage.note_unneeded(backend, key, now)
    assert garbage.claim(backend, key, now, now)
    times = iter([*[now + 1] * 4, now - 36000])
    with pytest.raises(errors.StorageError, match="another process is removing it"):
        garbage.revive(backend, key, now=lambda: next(times), pause=0)


@pytest.mark.parametrize("grace", [-1, float("nan"), -float("inf")])
def test_a_grace_period_is_not_negative(store, grace):
    store.add(adapter(1))
    with pytest.raises(errors.ConfigError, match="not a grace period"):
        store.gc(grace=grace)


@pytest.mark.parametrize("error", [PermissionError, KeyboardInterrupt])
def test_nobody_waits_for_a_collector_that_could_not_remove(store, monkeypatch, error):
    key = layout.adapter_key(store.add(adapter(1)))
    unlink = os.unlink

    def refused(path, **options):
        if path == store._backend.address(key):
            raise error(1, "refused")
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", refused)
    with pytest.raises((errors.StorageError, KeyboardInterrupt)):
        store.gc(grace=0)
    assert garbage.mark_of(store._backend, key, time.time()) is None
    monkeypatch.undo()
    assert store.open(store.add(adapter(1))) == adapter(1)


def test_nobody_waits_for_a_collector_whose_catalog_failed(store, monkeypatch):
    store.add(adapter(1))

    def failing(key):
        raise errors.StoreError("cannot use the catalog")

    monkeypatch.setattr(store._open_catalog(), "forget", failing)
    with pytest.raises(errors.StoreError, match="cannot use the catalog"):
        store.gc(grace=0)
    monkeypatch.undo()
    start = time.monotonic()
    assert store.open(store.add(adapter(1))) == adapter(1)
    assert time.monotonic() - start < 30


def test_an_object_whose_mark_was_removed_meanwhile_is_not_claimed(store):
    digest = store.add(adapter(1))
    key = layout.adapter_key(digest)
    (stored,) = store._backend.entries(layout.ADAPTERS)
    now = time.time()
    assert not garbage.is_due(store._backend, stored, now, now)
    assert not garbage.claim(store._backend, key, now, now)
    assert store.open(digest) == adapter(1)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_the_bank_of_an_unreadable_adapter_is_kept(store, is_damaged):
    """The adapter may have a later version, which another host can read."""
    digest = store.add(adapter(1, bank=1), name="x")
    store.add(adapter(2, bank=2))
    path = Path(store.path(digest))
    content = bytearray(path.read_bytes())
    content[8 if not is_damaged else 40] ^= 0xFF
    path.write_bytes(content)
    with pytest.warns(errors.VbfmtWarning, match=path.name[-20:]):
        store.rebuild()
    with pytest.warns(errors.VbfmtWarning, match="no bank is removed, because an adapter may use"):
        removed = store.gc(grace=0).removed
    assert [key.split("/")[0] for key in removed] == ["adapters"]
    content[8 if not is_damaged else 40] ^= 0xFF
    path.write_bytes(content)
    assert store.open("x") == adapter(1, bank=1)
    assert len(store.gc(grace=0).removed) == 1


def test_a_suspended_collector_removes_no_objects_that_are_used_again(store, monkeypatch):
    """It is suspended between its two steps for longer than a collector may take."""
    digest = store.add(adapter(1))
    claim = garbage.claim

    def claimed_and_suspended(backend, key, before, now):
        done = claim(backend, key, before, now)
        with monkeypatch.context() as later:
            later.setattr(garbage.time, "time", lambda: now + garbage._PATIENCE + 1)
            assert store.add(adapter(1), name="x") == digest
        return done

    monkeypatch.setattr(garbage, "claim", claimed_and_suspended)
    assert store.gc(grace=0).removed == ()
    assert store.open("x") == adapter(1)
    assert all(report.ok for report in store.verify())
