"""Stores with hostile JSON records."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import pytest

from tests.store.adapters import adapter
from vbfmt.errors import StorageError, StoreError, VbfmtError, VbfmtWarning
from vbfmt.store import ANY, Store, garbage, layout
from vbfmt.store.record import LONGEST

TEXTS = {
    "nested": "[" * 100_000,
    "another type": "[]",
    "a very long number": '{"digest": "x", "expires": ' + "9" * 1000 + ', "since": 1}',
    "cut off": '{"digest": ',
    "true": '{"vbfmt store": true, "digest": true, "name": true, "expires": true}',
    "twice": '{"vbfmt store": 9, "vbfmt store": 1, "name": "m", "name": "n"}',
    "below 1": '{"vbfmt store": 0}',
}


def record(folder: Path, kind: str) -> Path:
    """Return a store with a named adapter, and the path of one of its records."""
    Store(folder, create=True).add(adapter(1), name="n")
    paths = {
        "root": folder / "store.json",
        "name": next(folder.glob("names/*/n")),
        "lease": folder / "leases" / "0",
    }
    paths[kind].parent.mkdir(exist_ok=True)
    paths[kind].unlink(missing_ok=True)
    return paths[kind]


def used(folder: Path) -> None:
    with Store(folder) as store:
        store.resolve("n")
        store.gc(grace=0)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["root", "name", "lease"])
def test_a_damaged_record_is_one_error(tmp_path, kind, text):
    record(tmp_path / "s", kind).write_text(TEXTS[text])
    with pytest.raises(StoreError):
        used(tmp_path / "s")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("kind", ["root", "name"])
def test_a_pipe_in_place_of_a_record_does_not_block(tmp_path, kind):
    os.mkfifo(record(tmp_path / "s", kind))
    with pytest.raises(VbfmtError, match="cannot read"):
        used(tmp_path / "s")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no devices")
@pytest.mark.parametrize("kind", ["root", "name"])
def test_a_device_in_place_of_a_record_is_not_read(tmp_path, kind):
    record(tmp_path / "s", kind).symlink_to("/dev/zero")
    with pytest.raises(StorageError, match="cannot read"):
        used(tmp_path / "s")


@pytest.mark.parametrize("kind", ["root", "name", "lease"])
def test_a_record_that_is_too_long_is_damaged_and_not_read(tmp_path, kind):
    """Its beginning is valid, so that only its length is wrong."""
    path = record(tmp_path / "s", kind)
    digest = Store(tmp_path / "s").entries()[0].digest if kind != "root" else ""
    text = f'{{"vbfmt store": 1, "digest": "{digest}", "name": "n", "expires": 1}}'
    with open(path, "w") as stream:
        stream.write(text)
        stream.write(" " * LONGEST)
        stream.truncate(1 << 32)  # a sparse file
    tracemalloc.start()
    try:
        with pytest.raises(StoreError):
            used(tmp_path / "s")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


MARKS = {
    **TEXTS,
    "NaN": '{"since": NaN, "removing": false}',
    "infinity": '{"since": -Infinity, "removing": true}',
    "far ahead": '{"since": 1e18, "removing": true}',
    "negative": '{"since": -1, "removing": true}',
    "a string": '{"since": "1", "removing": true}',
    "not a boolean": '{"since": 1, "removing": 1}',
    "long": '{"since": 1, "removing": true}' + " " * LONGEST,
}


def marked(folder, text):
    """Return a store, the digest of its only adapter, and the path of the adapter's mark, which has
    this text."""
    store = Store(folder / "s", create=True)
    digest = store.add(adapter(1))
    store.gc(grace=100)
    mark = Path(store._backend.address(layout.unreferenced_key(layout.adapter_key(digest))))
    mark.write_text(text)
    return store, digest, mark


@pytest.mark.parametrize("text", MARKS)
def test_a_damaged_mark_does_not_change_the_time_of_removal(tmp_path, monkeypatch, text):
    store, digest, _ = marked(tmp_path, MARKS[text])
    now = time.time()
    assert store.gc(grace=100).removed == ()
    monkeypatch.setattr(garbage.time, "time", lambda: now + 99)
    assert store.gc(grace=100).removed == ()
    monkeypatch.setattr(garbage.time, "time", lambda: now + 102)
    assert store.gc(grace=100).removed == (layout.adapter_key(digest),)


@pytest.mark.parametrize("text", MARKS)
def test_an_adapter_with_a_damaged_mark_can_be_added(tmp_path, text):
    store, digest, mark = marked(tmp_path, MARKS[text])
    begin = time.monotonic()
    assert store.add(adapter(1)) == digest
    assert time.monotonic() - begin < 10
    assert not mark.exists()


@pytest.mark.parametrize("text", TEXTS)
def test_a_damaged_name_is_left_out_with_a_warning_until_it_is_repaired(tmp_path, text):
    path = record(tmp_path / "s", "name")
    with Store(tmp_path / "s") as store:
        other = store.add(adapter(2), name="other")
        assert store.names() == {"other": other}
        path.write_text(TEXTS[text])
        os.utime(path.parent, (1, 1))  # so that the folder's time shows no recent change
        for _ in range(2):
            with pytest.warns(VbfmtWarning, match="a name's record is damaged"):
                assert store.names() == {"other": other}
        damaged: list[StoreError] = []
        assert len(store.entries(damaged=damaged)) == 2
        assert [error.file for error in damaged] == [str(path)]
        with pytest.warns(VbfmtWarning, match="a name's record is damaged"):
            store.rebuild()
        for needs in (store.resolve, store.untag, lambda name: store.gc()):
            with pytest.raises(StoreError, match="a name's record is damaged"):
                needs("n")
        store.tag("n", other, replaces=ANY)
        assert store.names() == {"n": other, "other": other}


def test_a_name_whose_record_is_damaged_later_no_longer_points_anywhere(tmp_path):
    with Store(tmp_path / "s", create=True) as store:
        store.add(adapter(1), name="n")
        assert store.entries()[0].names == ("n",)
        next((tmp_path / "s").glob("names/*/n")).write_text("{")
        assert store.entries(damaged=[])[0].names == ()
