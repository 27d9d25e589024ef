"""A store in a folder: every system error is one error that names the file."""

from __future__ import annotations

import errno
import os
import re
import sys
import threading

import pytest

from vbfmt import errors
from vbfmt.store.folder import LOCK, Folder

KEY = "names/00/x"


@pytest.fixture
def folder(tmp_path):
    made = Folder(str(tmp_path))
    made.create(KEY, [b"content"])
    return made


def refuse(monkeypatch, function, number=errno.EIO):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(function, refused)


@pytest.mark.parametrize(
    ("function", "work", "what", "file"),
    [
        ("os.open", lambda folder: folder.found(KEY), "cannot read", KEY),
        ("os.unlink", lambda folder: folder.delete(KEY), "cannot remove", KEY),
        ("os.scandir", lambda folder: list(folder.entries("names")), "cannot read", "names"),
        ("os.makedirs", lambda folder: folder.create("leases/x", [b""]), "cannot write", "leases"),
        ("os.open", lambda folder: folder.replace(KEY, b"", ""), "cannot write", LOCK),
    ],
)
def test_a_system_error_is_one_error_that_names_the_file(
    folder, tmp_path, monkeypatch, function, work, what, file
):
    with monkeypatch.context() as patch:
        refuse(patch, function)
        path = re.escape(str(tmp_path / file))
        with pytest.raises(errors.StorageError, match=f"^{what} {path}: ") as error:
            work(folder)
    assert error.value.errno == errno.EIO
    assert bytes(folder.content(KEY)) == b"content"


def test_an_object_of_another_version_is_neither_replaced_nor_removed(folder):
    version = folder.found(KEY).version
    assert folder.replace(KEY, b"new", version)
    assert not folder.replace(KEY, b"newer", version)
    assert not folder.remove(KEY, version)
    assert folder.found(KEY).content == b"new"
    assert folder.remove(KEY, folder.found(KEY).version)
    assert not folder.remove(KEY, version)
    assert folder.found(KEY) is None


def test_a_missing_object_has_no_file(folder):
    with pytest.raises(FileNotFoundError, match="names/00/y"):
        folder.file("names/00/y")


@pytest.mark.skipif(sys.platform == "win32", reason="flock")
def test_waiting_for_another_process_is_logged(folder, tmp_path, caplog):
    import fcntl

    caplog.set_level("INFO", "vbfmt")
    version = folder.found(KEY).version
    with open(tmp_path / LOCK, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        work = threading.Thread(target=folder.replace, args=(KEY, b"new", version))
        work.start()
        work.join(0.2)
        assert bytes(folder.content(KEY)) == b"content"
    work.join()
    assert bytes(folder.content(KEY)) == b"new"
    assert caplog.messages == ["waiting for another process that is changing the store"]
    assert caplog.records[0].name.startswith("vbfmt.store")
