"""Writing files: completely or not at all, and nothing else is lost."""

from __future__ import annotations

import errno
import os
import stat

import pytest

import vbfmt
from spec.golden.make import worked_example
from vbfmt import errors
from vbfmt._files import folders, storage


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_permissions_of_a_new_file_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        storage.write(tmp_path / "x", [b"a", b"b"], overwrite=False)
    finally:
        os.umask(old)
    assert (tmp_path / "x").read_bytes() == b"ab"
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
    assert names(tmp_path) == ["x"]


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "x").chmod(0o604)
    storage.write(tmp_path / "x", [b"new"], overwrite=True)
    assert (tmp_path / "x").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o604


def test_a_set_user_id_bit_is_not_kept(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "x").chmod(0o4755)
    storage.write(tmp_path / "x", [b"new"], overwrite=True)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o755


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    storage.write(tmp_path / "link", [b"new"], overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_broken_link_counts_as_existing_output(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(errors.OutputExistsError):
        storage.write(tmp_path / "link", [b"new"], overwrite=False)
    assert names(tmp_path) == ["link"]


def test_each_file_of_a_new_folder_is_flushed_and_the_folder_once(tmp_path, monkeypatch):
    flushed = []
    real = os.fsync

    def fsync(descriptor):
        flushed.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with folders.new(tmp_path / "x", overwrite=False) as folder:
        for number in range(5):
            path = os.path.join(folder, str(number))
            assert storage.write_in_new_folder(path, [b"a", b"bc"]) == 3
        with pytest.raises(errors.OutputExistsError):
            storage.write_in_new_folder(path, [b"d"])
        with pytest.raises(errors.StorageError, match="cannot write"):
            storage.write_in_new_folder(os.path.join(folder, "no", "x"), [b"d"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == dict.fromkeys(
        "01234", b"abc"
    )
    assert flushed == [False] * 5 + [True] * 2


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    (tmp_path / "x").write_bytes(b"old")

    def pieces():
        yield b"new"
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError):
        storage.write(tmp_path / "x", pieces(), overwrite=True)
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_file_that_another_process_creates_first_is_not_overwritten(tmp_path):
    def pieces():
        (tmp_path / "x").write_bytes(b"theirs")
        yield b"ours"

    with pytest.raises(errors.OutputExistsError):
        storage.write(tmp_path / "x", pieces(), overwrite=False)
    assert (tmp_path / "x").read_bytes() == b"theirs"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("where", ["no/such/folder/x", "file/x"])
def test_system_errors_are_one_line(tmp_path, where):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(errors.StorageError, match="cannot write .*: "):
        storage.write(tmp_path / where, [b"x"], overwrite=False)


@pytest.mark.parametrize("mmap", [True, False])
def test_only_regular_files_are_read(tmp_path, mmap):
    os.mkfifo(tmp_path / "pipe")
    for what in (tmp_path, tmp_path / "pipe", tmp_path / "nothing"):
        with pytest.raises(errors.StorageError, match="cannot read"):
            storage.read(what, mmap=mmap)
    (tmp_path / "empty").write_bytes(b"")
    assert bytes(storage.read(tmp_path / "empty", mmap=mmap)) == b""


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_an_invalid_path_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for mmap in (True, False):
        with pytest.raises(errors.StorageError, match="cannot read a.*no file name"):
            storage.read(name, mmap=mmap)
    with pytest.raises(errors.StorageError, match="cannot write a.*no file name"):
        storage.write(name, [b"x"], overwrite=True)
    with (
        pytest.raises(errors.StorageError, match="cannot write a.*no file name"),
        folders.new(name, overwrite=True),
    ):
        pass
    for what in (vbfmt.load, vbfmt.verify, lambda path: vbfmt.save(worked_example(), path)):
        with pytest.raises(errors.StorageError):
            what(name)
    assert names(tmp_path) == []


def test_a_file_that_is_emptied_before_it_is_mapped_is_empty(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"data")
    real = os.fstat

    def fstat(descriptor):
        found = real(descriptor)
        os.truncate(tmp_path / "x", 0)
        return found

    monkeypatch.setattr(os, "fstat", fstat)
    assert bytes(storage.read(tmp_path / "x", mmap=True)) == b""


def test_a_loop_of_links_is_one_line(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for overwrite in (False, True):
        with pytest.raises((errors.StorageError, errors.OutputExistsError)):
            storage.write(tmp_path / "a" / "x", [b"x"], overwrite=overwrite)
    with pytest.raises(errors.StorageError, match="cannot read "):
        storage.read(tmp_path / "a", mmap=True)
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("name", ["x" * 255, "\U0001f984" * 63, "ä" * 127])
def test_names_may_be_as_long_as_the_system_allows(tmp_path, name):
    storage.write(tmp_path / name, [b"1"], overwrite=False)
    storage.write(tmp_path / name, [b"2"], overwrite=True)
    assert (tmp_path / name).read_bytes() == b"2"
    assert names(tmp_path) == [name]


def test_a_private_file_is_private_while_it_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "x").chmod(0o600)
    seen = []
    real = storage.keep_permissions

    def spied(target, new):
        seen.append(os.fstat(new).st_mode & 0o777)
        real(target, new)
        seen.append(os.fstat(new).st_mode & 0o777)

    monkeypatch.setattr(storage, "keep_permissions", spied)
    storage.write(tmp_path / "x", [b"new"], overwrite=True)
    assert seen == [0o600, 0o600]


def no_links(*_):
    raise PermissionError(1, "no hard links here")


def test_a_file_is_written_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.os, "link", no_links)
    storage.write(tmp_path / "x", [b"a"], overwrite=False)
    assert (tmp_path / "x").read_bytes() == b"a"
    assert names(tmp_path) == ["x"]


def test_without_hard_links_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.os, "link", no_links)

    def pieces():
        (tmp_path / "x").write_bytes(b"theirs")
        yield b"ours"

    with pytest.raises(errors.OutputExistsError):
        storage.write(tmp_path / "x", pieces(), overwrite=False)
    assert (tmp_path / "x").read_bytes() == b"theirs"
    assert names(tmp_path) == ["x"]


def test_windows_has_no_permissions_to_keep(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.sys, "platform", "win32")
    monkeypatch.delattr(storage.os, "fchmod")
    (tmp_path / "x").write_bytes(b"old")
    storage.write(tmp_path / "x", [b"new"], overwrite=True)
    assert (tmp_path / "x").read_bytes() == b"new"


def test_a_folder_that_cannot_be_opened_is_reported_as_a_folder(tmp_path, monkeypatch):
    """Windows cannot open folders."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage.os, "open", refuse)
    with pytest.raises(errors.StorageError, match="found a folder, expected a file; pack"):
        storage.read(tmp_path, mmap=True)


@pytest.mark.parametrize("number", [5, 32, 1224])
def test_windows_does_not_replace_an_open_file(tmp_path, monkeypatch, number):
    def refuse(*_):
        error = PermissionError(13, "Access is denied")
        error.winerror = number
        raise error

    (tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr(storage.os, "replace", refuse)
    with pytest.raises(
        errors.StorageError, match="access is denied; close other programs that use it"
    ):
        storage.write(tmp_path / "x", [b"new"], overwrite=True)
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("can", [True, False])
def test_macos_flushes_the_disks_cache_too(tmp_path, monkeypatch, can):
    done = []

    def full(file, command):
        done.append("full")
        if not can:
            raise OSError(errno.ENOTSUP, "Operation not supported")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(storage.sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full)
    monkeypatch.setattr(storage.os, "fsync", lambda file: done.append("fsync"))
    storage.write(tmp_path / "x", [b"new"], overwrite=False)
    assert done == (["full"] if can else ["full", "fsync"]) * 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_pipe_is_not_replaced_by_a_file(tmp_path, overwrite):
    """Otherwise, root would replace /dev/null by a regular file."""
    os.mkfifo(tmp_path / "x")
    with pytest.raises((errors.StorageError, errors.OutputExistsError)):
        storage.write(tmp_path / "x", [b"new"], overwrite=overwrite)
    assert stat.S_ISFIFO((tmp_path / "x").stat().st_mode)
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("past_cache", [False, True])
def test_written_bytes_are_counted(tmp_path, past_cache):
    pieces = [b"ab", b"", memoryview(bytes(5))]
    written = storage.write(tmp_path / "x", pieces, overwrite=False, past_cache=past_cache)
    assert written == (tmp_path / "x").stat().st_size == 7
