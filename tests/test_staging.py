"""Folders in the making: locked while alive, swept when dead, put in place whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vbfmt import staging

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is swept there")

HOLD = """
import sys, time
from vbfmt import staging
with staging.folder(sys.argv[1]) as path:
    print(path, flush=True)
    time.sleep(600)
"""


def held(target: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that is writing a folder for `target`, and that folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, target], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_holds_is_not(tmp_path):
    target = tmp_path / "model"
    (dead, left), (alive, kept) = held(target), held(target)
    dead.kill()
    dead.wait()
    (left / "half").write_text("half")
    try:
        assert left.is_dir()
        staging.sweep(os.fspath(target))
        assert not left.exists()
        assert kept.is_dir()
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
def test_nobody_elses_folders_are_swept(tmp_path, name):
    (tmp_path / name).mkdir()
    staging.sweep(os.fspath(tmp_path / "model"))
    assert (tmp_path / name).is_dir()


def test_a_link_is_not_swept_nor_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    link = tmp_path / ".model.0123456789ab.partial"
    link.symlink_to(tmp_path / "precious")
    staging.sweep(os.fspath(tmp_path / "model"))
    assert (tmp_path / "precious").is_dir()
    assert link.is_symlink()


def test_a_renamed_folder_stays_and_any_other_goes(tmp_path):
    target = os.fspath(tmp_path / "model")
    with staging.folder(target) as path:
        os.rename(path, target)
    with staging.folder(target):
        pass
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_one_folder_takes_the_place_of_another(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(staging, "_exchanged", lambda one, other: False)
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with staging.folder(os.fspath(target)) as path:
        (Path(path) / "new").touch()
        staging.put_whole(path, os.fspath(target))
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="renameat2 is Linux's")
def test_linux_exchanges_in_one_step(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"in {name}").touch()
    assert staging._exchanged(os.fspath(tmp_path / "one"), os.fspath(tmp_path / "two"))
    assert os.listdir(tmp_path / "one") == ["in two"]
    assert os.listdir(tmp_path / "two") == ["in one"]


def test_without_locks_it_works_and_nothing_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "_locked", lambda path: None)
    (tmp_path / ".model.0123456789ab.partial").mkdir()
    target = os.fspath(tmp_path / "model")
    with staging.folder(target) as path:
        os.rename(path, target)
    assert sorted(os.listdir(tmp_path)) == [".model.0123456789ab.partial", "model"]
