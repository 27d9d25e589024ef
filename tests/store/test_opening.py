"""Opening folders that are stores, and folders that are not."""

from __future__ import annotations

import errno
import json
import os

import pytest

from tests.store.adapters import adapter
from vbfmt import errors
from vbfmt.store import Store, folder, layout


def test_a_folder_that_is_not_a_store_is_refused(tmp_path):
    with pytest.raises(errors.StoreError, match=r"not a vbfmt store in .*: found no store.json"):
        Store(tmp_path)
    with pytest.raises(errors.StoreError):
        Store(tmp_path / "nowhere")
    (tmp_path / "something").write_bytes(b"x")
    with pytest.raises(errors.StoreError, match="not empty"):
        Store(tmp_path, create=True)
    assert os.listdir(tmp_path) == ["something"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"vbfmt store": "1"}', '"x"', "null"])
def test_an_invalid_store_file_is_refused(tmp_path, content):
    (tmp_path / layout.ROOT).write_text(content)
    with pytest.raises(errors.StoreError, match="not a vbfmt store"):
        Store(tmp_path)


def test_a_newer_layout_is_refused(store, tmp_path):
    (tmp_path / "s" / layout.ROOT).write_text(json.dumps({"vbfmt store": 2}))
    with pytest.raises(errors.VersionError, match="found 2, expected at most 1; update vbfmt"):
        Store(tmp_path / "s")


class Msvcrt:
    """A fake of Windows' locks: the first attempts find the file locked."""

    LK_NBLCK = 2

    def __init__(self, *answers):
        self.answers = list(answers)
        self.locked = []

    def locking(self, file, mode, length):
        if self.answers:
            raise OSError(self.answers.pop(), "refused")
        self.locked.append((mode, length))


def test_windows_waits_for_the_lock_of_the_store(store, monkeypatch):
    msvcrt = Msvcrt(errno.EACCES, errno.EACCES)
    monkeypatch.setattr(folder, "msvcrt", msvcrt, raising=False)
    monkeypatch.setattr(folder.sys, "platform", "win32")
    one, two = store.add(adapter(1), name="x"), store.add(adapter(2))
    store.tag("x", two, replaces=one)
    assert store.resolve("x") == two
    assert msvcrt.locked[0] == (Msvcrt.LK_NBLCK, 1)
    assert msvcrt.answers == []


def test_a_lock_that_the_system_refuses_is_one_error(store, monkeypatch):
    one, two = store.add(adapter(1), name="x"), store.add(adapter(2))
    monkeypatch.setattr(folder, "msvcrt", Msvcrt(errno.ENOLCK), raising=False)
    monkeypatch.setattr(folder.sys, "platform", "win32")
    with pytest.raises(errors.StorageError, match="cannot lock"):
        store.tag("x", two, replaces=one)
    assert store.resolve("x") == one


@pytest.mark.parametrize("name", ["file:other", "a%20b", "a?mode=ro", "a#b", ":memory:"])
def test_a_name_that_looks_like_a_uri_is_a_folder(tmp_path, monkeypatch, name):
    """SQLite would open the catalog of the store `other` for a relative path `file:other`."""
    monkeypatch.chdir(tmp_path)
    with Store("other", create=True) as store:
        assert store.names() == {}
    before = (tmp_path / "other" / "catalog.sqlite").read_bytes()
    with Store(name, create=True) as store:
        assert store.names() == {}
    assert (tmp_path / name / "catalog.sqlite").exists()
    assert (tmp_path / "other" / "catalog.sqlite").read_bytes() == before


def test_a_store_that_another_process_creates_at_the_same_time_is_opened(tmp_path, monkeypatch):
    entries = folder.Folder.entries

    def slower(self, prefix):
        monkeypatch.setattr(folder.Folder, "entries", entries)
        Store(tmp_path, create=True).close()
        return entries(self, prefix)

    monkeypatch.setattr(folder.Folder, "entries", slower)
    assert Store(tmp_path, create=True).names() == {}


@pytest.mark.parametrize("inner", ["adapters", "names/ab", "new/folder", "link"])
def test_no_store_is_created_in_another_store(store, tmp_path, inner):
    os.symlink(tmp_path / "s" / "adapters", tmp_path / "link")
    path = tmp_path / "link" / "new" if inner == "link" else tmp_path / "s" / inner / "new"
    with pytest.raises(errors.StoreError, match="a store inside another store") as error:
        Store(path, create=True)
    assert error.value.file == str(path)
    assert not path.exists()
