"""Stores from strangers: their JSON records are anything but what a store writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.store.adapters import adapter
from vbfmt.errors import StorageError, StoreError, VbfmtError
from vbfmt.store import Store

TEXTS = {
    "nested": "[" * 100_000,
    "another type": "[]",
    "a number without end": '{"digest": "x", "expires": ' + "9" * 1000 + ', "since": 1}',
    "cut off": '{"digest": ',
}


def record(folder: Path, kind: str) -> Path:
    """A store with an adapter of a name; the path of one of its records."""
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
def test_a_pipe_in_place_of_a_record_is_not_waited_for(tmp_path, kind):
    os.mkfifo(record(tmp_path / "s", kind))
    with pytest.raises(VbfmtError, match="cannot read"):
        used(tmp_path / "s")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no devices")
@pytest.mark.parametrize("kind", ["root", "name"])
def test_a_device_in_place_of_a_record_is_not_read(tmp_path, kind):
    record(tmp_path / "s", kind).symlink_to("/dev/zero")
    with pytest.raises(StorageError, match="cannot read"):
        used(tmp_path / "s")
