"""Writing folders: complete or not at all, and other files are kept."""

from __future__ import annotations

import os
import stat
import sys

import pytest

from tests.files.test_storage import names
from vbfmt import errors
from vbfmt._files import folders, staging, storage


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_the_replacement_of_another_users_output_belongs_to_the_writer(tmp_path):
    """If the owner were kept, that user could change the content after it was written."""
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "d").mkdir()
    for name in ("x", "d"):
        os.chown(tmp_path / name, 12345, 12345)
    storage.write(tmp_path / "x", [b"new"], overwrite=True)
    with folders.new(tmp_path / "d", overwrite=True, whole=True) as folder:
        storage.write(os.path.join(folder, "y"), [b"new"], overwrite=False)
    assert {(tmp_path / name).stat().st_uid for name in ("x", "d", "d/y")} == {0}


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), folders.new(tmp_path / "d", overwrite=False) as new:
        storage.write(os.path.join(new, "a"), [b"1"], overwrite=False)
        raise RuntimeError
    assert names(tmp_path) == []
    with folders.new(tmp_path / "d", overwrite=False) as new:
        storage.write(os.path.join(new, "a"), [b"1"], overwrite=False)
        assert not (tmp_path / "d").exists()
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d") == ["a"]


def test_an_empty_folder_counts_as_no_output(tmp_path):
    (tmp_path / "d").mkdir()
    with folders.new(tmp_path / "d", overwrite=False) as new:
        storage.write(os.path.join(new, "a"), [b"1"], overwrite=False)
    assert names(tmp_path / "d") == ["a"]


def test_overwriting_a_folder_replaces_only_files_of_the_same_name(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(b"old")
    (tmp_path / "d" / "diary").write_bytes(b"precious")
    with (
        pytest.raises(errors.OutputExistsError),
        folders.new(tmp_path / "d", overwrite=False),
    ):
        pass
    with folders.new(tmp_path / "d", overwrite=True) as new:
        storage.write(os.path.join(new, "a"), [b"new"], overwrite=False)
    assert (tmp_path / "d" / "a").read_bytes() == b"new"
    assert (tmp_path / "d" / "diary").read_bytes() == b"precious"
    assert names(tmp_path) == ["d"]


@pytest.mark.parametrize("whole", [False, True])
def test_a_file_is_not_replaced_by_a_folder(tmp_path, whole):
    (tmp_path / "d").write_bytes(b"precious")
    with (
        pytest.raises(errors.StorageError, match="[Nn]ot a directory"),
        folders.new(tmp_path / "d", overwrite=True, whole=whole) as new,
    ):
        storage.write(os.path.join(new, "a"), [b"1"], overwrite=False)
    assert (tmp_path / "d").read_bytes() == b"precious"
    assert names(tmp_path) == ["d"]


def test_a_link_to_another_folder_is_followed_and_nothing_is_left_in_either(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real").write_bytes(b"old")
    (tmp_path / "here" / "link").symlink_to("../there/real")
    storage.write(tmp_path / "here" / "link", [b"new"], overwrite=True)
    assert (tmp_path / "there" / "real").read_bytes() == b"new"
    assert names(tmp_path / "here") == ["link"]
    assert names(tmp_path / "there") == ["real"]


def test_a_file_does_not_replace_a_folder(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(errors.StorageError, match="is a directory"):
        storage.write(tmp_path / "x", [b"new"], overwrite=True)
    assert names(tmp_path) == ["x"]


def filled(folder, **files):
    """Write these files by `folders.new`."""
    with folders.new(folder, overwrite=True) as new:
        for name, text in files.items():
            storage.write(os.path.join(new, name), [text], overwrite=False)


def test_a_replaced_folder_and_its_files_keep_their_permissions(tmp_path):
    filled(tmp_path / "d", a=b"1", b=b"1")
    (tmp_path / "d").chmod(0o750)
    (tmp_path / "d" / "a").chmod(0o600)
    filled(tmp_path / "d", a=b"2", b=b"2", c=b"2")
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "d" / "a").stat().st_mode) == 0o600
    assert (tmp_path / "d" / "a").read_bytes() == b"2"


@pytest.mark.parametrize("diary", [False, True])
def test_a_private_folder_is_private_while_it_is_replaced(tmp_path, monkeypatch, diary):
    """Nobody else can read its files until they have the permissions of the old ones."""
    filled(tmp_path / "d", a=b"1", b=b"1")
    if diary:
        (tmp_path / "d" / "diary").touch()
    (tmp_path / "d").chmod(0o755)
    (tmp_path / "d" / "a").chmod(0o600)
    public = []

    def look():
        for file in tmp_path.glob("*/a"):
            if file.parent.stat().st_mode & 0o077:
                public.append(file.stat().st_mode & 0o777)

    def spy(module, name):
        real = getattr(module, name)

        def spied(*args, **keywords):
            result = real(*args, **keywords)
            look()
            return result

        monkeypatch.setattr(module, name, spied)

    for name in ("fsync", "chmod", "replace", "mkdir"):
        spy(os, name)
    spy(staging, "exchange")
    filled(tmp_path / "d", a=b"2", b=b"2")
    monkeypatch.undo()
    assert set(public) == {0o600}
    assert (tmp_path / "d" / "a").read_bytes() == b"2"


def test_an_empty_folder_keeps_its_permissions(tmp_path):
    (tmp_path / "d").mkdir(mode=0o700)
    filled(tmp_path / "d", a=b"1")
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700


def test_a_folder_that_another_process_creates_meanwhile_is_kept(tmp_path):
    with (
        pytest.raises(errors.OutputExistsError),
        folders.new(tmp_path / "d", overwrite=False) as new,
    ):
        storage.write(os.path.join(new, "a"), [b"ours"], overwrite=False)
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "a").write_bytes(b"theirs")
    assert (tmp_path / "d" / "a").read_bytes() == b"theirs"
    assert names(tmp_path) == ["d"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="exchanging names is Linux's")
def test_a_folder_with_nothing_else_in_it_is_replaced_in_one_step(tmp_path, monkeypatch):
    filled(tmp_path / "d", a=b"1", b=b"1")
    monkeypatch.setattr(os, "replace", None)  # no single file is moved
    with folders.new(tmp_path / "d", overwrite=True) as new:
        for name in ("a", "b"):
            with open(os.path.join(new, name), "wb") as stream:
                stream.write(b"2")
    monkeypatch.undo()
    assert [(tmp_path / "d" / name).read_bytes() for name in ("a", "b")] == [b"2", b"2"]


def test_files_added_to_a_folder_at_the_last_moment_are_kept(tmp_path, monkeypatch):
    filled(tmp_path / "d", a=b"1")
    real = staging.exchange

    def exchange(one, other):
        (tmp_path / "d" / "diary").write_bytes(b"precious")
        return real(one, other)

    monkeypatch.setattr(staging, "exchange", exchange)
    filled(tmp_path / "d", a=b"2")
    assert (tmp_path / "d" / "diary").read_bytes() == b"precious"
    assert (tmp_path / "d" / "a").read_bytes() == b"2"


def test_an_error_names_the_folder_as_the_user_does(tmp_path):
    with (
        pytest.raises(errors.StorageError) as error,
        folders.new(tmp_path / "d", overwrite=False) as new,
    ):
        storage.write(os.path.join(new, "no", "a"), [b"1"], overwrite=False)
    assert error.value.file == str(tmp_path / "d" / "no" / "a")


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "d" / "a").mkdir(parents=True)
    (tmp_path / "d" / "b").write_bytes(b"old")
    with (
        pytest.raises(errors.StorageError, match="a is a folder there|Is a directory"),
        folders.new(tmp_path / "d", overwrite=True) as new,
    ):
        for name in ("a", "b"):
            storage.write(os.path.join(new, name), [b"new"], overwrite=False)
    assert (tmp_path / "d" / "a").is_dir()
    assert (tmp_path / "d" / "b").read_bytes() == b"old"
    assert names(tmp_path) == ["d"]


@pytest.mark.parametrize("error", [PermissionError, KeyboardInterrupt])
@pytest.mark.parametrize("has_links", [True, False])
def test_files_are_restored_if_another_one_cannot_be_replaced(
    tmp_path, monkeypatch, error, has_links
):
    """New weights with an old config would be a different adapter."""
    link = os.link
    filled(tmp_path / "d", a=b"1", c=b"1")
    (tmp_path / "d" / "diary").write_bytes(b"precious")
    os.symlink("diary", tmp_path / "d" / "b")
    replace = os.replace

    def refused(source, target):
        if target == str(tmp_path / "d" / "c") and "kept" not in source:
            raise error(1, "refused")
        replace(source, target)

    def linked(source, target, **options):
        if not has_links:
            raise PermissionError(1, "Operation not permitted")
        link(source, target, **options)

    monkeypatch.setattr(os, "replace", refused)
    monkeypatch.setattr(os, "link", linked)
    with pytest.raises((errors.StorageError, KeyboardInterrupt)):
        filled(tmp_path / "d", a=b"2", aa=b"2", b=b"2", c=b"2")
    monkeypatch.undo()
    found = {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()}
    assert found == {"a": b"1", "b": b"precious", "c": b"1", "diary": b"precious"}
    assert (tmp_path / "d" / "b").is_symlink()
    assert names(tmp_path) == ["d"]
    filled(tmp_path / "d", a=b"2", aa=b"2", b=b"2", c=b"2")
    assert sorted(names(tmp_path / "d")) == ["a", "aa", "b", "c", "diary"]
    assert (tmp_path / "d" / "c").read_bytes() == b"2"
