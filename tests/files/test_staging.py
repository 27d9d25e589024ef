"""Temporary outputs: locked while their process runs, removed after it has died, renamed when
complete."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vbfmt._files import folders, staging, storage

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is swept there")

HOLD = """
import sys, time
from vbfmt._files import staging
kind, target = sys.argv[1:]
with getattr(staging, kind)(target) as made:
    print(made if kind == "folder" else made[0], flush=True)
    time.sleep(600)
"""


def held(kind: str, target: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that is writing a file or folder for `target`; return the process and its
    temporary path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, kind, target], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_leftovers_are_removed_unless_their_process_is_running(tmp_path, kind):
    target = tmp_path / "model"
    (dead, left), (alive, kept) = held(kind, target), held(kind, target)
    dead.kill()
    dead.wait()
    if kind == "folder":
        (left / "half").write_text("half")
    try:
        assert left.exists()
        staging.sweep(os.fspath(target))
        assert not left.exists()
        assert kept.exists()
    finally:
        alive.kill()
        alive.wait()
    staging.sweep(os.fspath(target))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        ".model2.0123456789ab.partial",
        ".model.x.0123456789ab.partial",
        ".model.0123456789ab.part",
        ".model.0123.partial",
        "model.0123456789ab.partial",
    ],
)
def test_other_folders_are_not_removed(tmp_path, name):
    (tmp_path / name).mkdir()
    staging.sweep(os.fspath(tmp_path / "model"))
    assert (tmp_path / name).is_dir()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_older_leftovers_of_other_targets_are_removed(tmp_path, kind):
    (dead, left), (alive, kept) = (held(kind, tmp_path / "other") for _ in range(2))
    dead.kill()
    dead.wait()
    try:
        staging.sweep(os.fspath(tmp_path / "x"))
        assert left.exists()  # a writer may not have locked it yet
        for path in (left, kept):
            os.utime(path, (0, 0))
        staging.sweep(os.fspath(tmp_path / "x"))
        assert not left.exists()
        assert kept.exists()
    finally:
        alive.kill()
        alive.wait()


def test_many_targets_are_swept_once_per_block(tmp_path, monkeypatch):
    left = [tmp_path / f".x{number}.0123456789ab.partial" for number in range(3)]
    for path in left:
        path.touch()
    with staging.swept(os.fspath(tmp_path / f"x{number}") for number in range(2)):
        assert [path.exists() for path in left] == [False, False, True]
        with monkeypatch.context() as patch:
            patch.setattr(os, "listdir", lambda folder: pytest.fail("listed again"))
            storage.write(tmp_path / "x0", [b"x"], overwrite=False)
        left[0].touch()
        storage.write(tmp_path / "x2", [b"x"], overwrite=False)
        assert [path.exists() for path in left] == [True, False, False]
    storage.write(tmp_path / "x0", [b"y"], overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["x0", "x2"]


def test_a_lock_holds_until_the_file_is_in_place(tmp_path):
    """A finished file that has been closed is not yet abandoned."""
    target = os.fspath(tmp_path / "x")
    with staging.file(target) as (path, descriptor):
        os.close(descriptor)
        staging.sweep(target)
        os.rename(path, target)
    assert os.listdir(tmp_path) == ["x"]


def test_special_files_are_not_removed_and_do_not_block(tmp_path):
    os.mkfifo(tmp_path / ".x.0123456789ab.partial")
    staging.sweep(os.fspath(tmp_path / "x"))
    assert os.listdir(tmp_path) == [".x.0123456789ab.partial"]


def test_a_temporary_output_that_is_removed_before_it_is_locked_is_remade(tmp_path, monkeypatch):
    """Another process may take an output for abandoned between its creation and its lock."""
    target = os.fspath(tmp_path / "x")
    real, swept = staging._lock, []

    def holds(descriptor, path):
        if len(swept) < 2:
            swept.append(path)
            os.unlink(path)
        return real(descriptor, path)

    monkeypatch.setattr(staging, "_lock", holds)
    with staging.file(target) as (path, descriptor):
        os.close(descriptor)
        os.rename(path, target)
    assert len(swept) == 2
    assert os.listdir(tmp_path) == ["x"]


def test_a_link_is_neither_removed_nor_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    link = tmp_path / ".model.0123456789ab.partial"
    link.symlink_to(tmp_path / "precious")
    staging.sweep(os.fspath(tmp_path / "model"))
    assert (tmp_path / "precious").is_dir()
    assert link.is_symlink()


def test_a_temporary_folder_is_removed_unless_it_is_renamed(tmp_path):
    target = os.fspath(tmp_path / "model")
    with staging.folder(target) as path:
        os.rename(path, target)
    with staging.folder(target):
        pass
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_replaces_another(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with staging.folder(os.fspath(target)) as path:
        (Path(path) / "new").touch()
        staging.replace_folder(path, os.fspath(target))
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["model"]


REPLACE = """
import os, sys
from vbfmt._files import staging
target, killed = sys.argv[1], int(sys.argv[2])
staging.exchange = lambda one, other: False
real, calls = os.rename, []
def rename(one, other):
    calls.append(one)
    if len(calls) == killed:
        os._exit(9)
    real(one, other)
os.rename = rename
with staging.folder(target) as path:
    open(os.path.join(path, "new"), "w").close()
    staging.replace_folder(path, target)
"""


def folder_with_old(tmp_path: Path) -> Path:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    return target


def test_the_old_folder_is_restored_if_it_cannot_be_replaced(tmp_path, monkeypatch):
    target = folder_with_old(tmp_path)
    monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    real, calls = os.rename, []

    def rename(one, other):
        calls.append(one)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        real(one, other)

    monkeypatch.setattr(staging.os, "rename", rename)
    with pytest.raises(OSError, match="Input"), staging.folder(os.fspath(target)) as path:
        staging.replace_folder(path, os.fspath(target))
    assert os.listdir(target) == ["old"]
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize(("killed", "left"), [(1, "old"), (2, None), (3, "new")])
def test_nothing_is_lost_if_a_process_is_killed_between_two_renames(tmp_path, killed, left):
    """The old output is kept under its temporary name; `sweep` neither removes nor restores it."""
    target = folder_with_old(tmp_path)
    done = subprocess.run([sys.executable, "-c", REPLACE, target, str(killed)])
    assert done.returncode == 9
    staging.sweep(os.fspath(target))
    assert (os.listdir(target) if target.exists() else [None]) == [left]
    aside = [path for path in tmp_path.iterdir() if path.name.endswith(".replaced")]
    assert [os.listdir(path) for path in aside] == ([] if killed == 1 else [["old"]])


def test_a_temporary_folder_is_not_listed_for_each_of_its_files(tmp_path, monkeypatch):
    """Earlier, 5,000 files in one folder took 14 s."""
    with staging.folder(str(tmp_path / "x")) as folder:
        monkeypatch.setattr(os, "listdir", lambda path: pytest.fail("listed"))
        with staging.file(os.path.join(folder, "sub.bin")) as (_, file):
            os.close(file)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_a_predictable_name_is_not_moved_into_place(tmp_path, overwrite):
    """When the temporary name was predictable, a later write moved such a folder to the missing
    output."""
    digest = hashlib.sha256(b"model").hexdigest()[:12]
    planted = tmp_path / f".model.{digest}.replaced"
    planted.mkdir()
    (planted / "strange").touch()
    with folders.new(tmp_path / "model", overwrite=overwrite) as folder:
        (Path(folder) / "own").touch()
    assert os.listdir(tmp_path / "model") == ["own"]
    assert os.listdir(planted) == ["strange"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="renameat2 is Linux's")
def test_linux_exchanges_in_one_step(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"in {name}").touch()
    assert staging.exchange(os.fspath(tmp_path / "one"), os.fspath(tmp_path / "two"))
    assert os.listdir(tmp_path / "one") == ["in two"]
    assert os.listdir(tmp_path / "two") == ["in one"]


def test_without_file_locks_nothing_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_lock", lambda descriptor, path: False)
    (tmp_path / ".model.0123456789ab.partial").mkdir()
    target = os.fspath(tmp_path / "model")
    with staging.folder(target) as path:
        os.rename(path, target)
    assert sorted(os.listdir(tmp_path)) == [".model.0123456789ab.partial", "model"]


@pytest.mark.parametrize("there", ["nothing", "an empty folder"])
def test_a_folder_is_renamed_if_there_is_no_old_one(tmp_path, there):
    target = tmp_path / "model"
    if there == "an empty folder":
        target.mkdir()
    with staging.folder(os.fspath(target)) as path:
        (Path(path) / "new").touch()
        assert staging.move_if_free(path, os.fspath(target))
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("there", ["a file", "a folder"])
def test_a_folder_is_not_renamed_over_an_existing_path(tmp_path, there):
    target = tmp_path / "model"
    precious = target if there == "a file" else target / "precious"
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("precious")
    with staging.folder(os.fspath(target)) as path:
        assert not staging.move_if_free(path, os.fspath(target))
    assert precious.read_text() == "precious"
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("system", ["darwin", "an old C library"])
def test_not_every_system_exchanges_names(tmp_path, monkeypatch, system):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    if system == "darwin":
        monkeypatch.setattr(staging.sys, "platform", "darwin")
    else:
        monkeypatch.setattr(staging.ctypes, "CDLL", lambda *_, **__: object())
    assert not staging.exchange(os.fspath(tmp_path / "one"), os.fspath(tmp_path / "two"))


def test_windows_has_no_locks_and_removes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(staging.sys, "platform", "win32")
    target = os.fspath(tmp_path / "x")
    with staging.file(target) as (path, descriptor):
        os.close(descriptor)
        staging.sweep(target)
        os.rename(path, target)
    with staging.folder(target):
        staging.sweep(target)
        assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a folder"])
def test_windows_moves_a_folder_to_a_missing_or_empty_one(tmp_path, monkeypatch, there):
    """On Windows, a rename replaces nothing."""
    real = os.rename

    def rename(one, other):
        if os.path.lexists(other):
            raise FileExistsError(errno.EEXIST, "Cannot create a file when that file exists", other)
        real(one, other)

    monkeypatch.setattr(staging.sys, "platform", "win32")
    monkeypatch.setattr(staging.os, "rename", rename)
    target = tmp_path / "model"
    if there != "nothing":
        target.mkdir()
    if there == "a folder":
        (target / "precious").touch()
    with staging.folder(os.fspath(target)) as path:
        (Path(path) / "new").touch()
        assert staging.move_if_free(path, os.fspath(target)) is (there != "a folder")
    assert os.listdir(target) == ["precious" if there == "a folder" else "new"]
    assert os.listdir(tmp_path) == ["model"]


def test_a_path_that_is_replaced_while_it_is_checked_is_not_removed(tmp_path, monkeypatch):
    """It is replaced between opening and locking."""
    left = tmp_path / ".x.0123456789ab.partial"
    left.write_text("another's by now")
    real = staging.fcntl.flock

    def flock(descriptor, how):
        left.unlink()
        left.write_text("another's by now")
        real(descriptor, how)

    monkeypatch.setattr(staging.fcntl, "flock", flock)
    staging.sweep(os.fspath(tmp_path / "x"))
    assert left.read_text() == "another's by now"
