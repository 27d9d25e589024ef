"""Every call to the operating system fails once, and from then on: the old or the new, complete,
one error of the library's own, and nothing left behind after the next write."""

from __future__ import annotations

import dataclasses
import errno
import gc
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from spec.golden.make import wide_indices, worked_example
from tests.converters.test_peft import logits_form, write_folder
from tests.faults import Faults, injected
from vbfmt import Adapter, dumps, errors, load, save, verify
from vbfmt._files import banks as bank_files
from vbfmt._files import storage
from vbfmt.converters import lora, peft, read

OLD = dataclasses.replace(worked_example(), metadata={"which": "old"})
NEW = dataclasses.replace(worked_example(), metadata={"which": "new"})


def write_past_cache(adapter: Adapter, path: Path, *, overwrite: bool) -> None:
    storage.write(path, [dumps(adapter)], overwrite=overwrite, past_cache=True)


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    """Flushing is counted and made to fail here; that it takes its time adds nothing. Files that
    earlier tests have left to the garbage are closed before they are counted."""
    gc.collect()
    monkeypatch.setattr(os, "fsync", lambda file: None)


class Writer(NamedTuple):
    """Writes an adapter to a path."""

    write: Callable[..., object]
    old: Adapter = OLD
    new: Adapter = NEW


OTHER = dataclasses.replace(worked_example(), bank=worked_example().bank * 2, base_model="other")
WRITERS = {
    "save": Writer(save),
    "past the cache": Writer(write_past_cache),
    "unpack": Writer(peft.write, OLD, OTHER),
    "expand": Writer(lora.write, OLD, OTHER),
}


def content(path: Path) -> object:
    """What stands at a path: bytes, bytes by name, or None."""
    if path.is_dir():
        return {entry.name: entry.read_bytes() for entry in sorted(path.iterdir())}
    return path.read_bytes() if path.exists() else None


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("exists", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("name", WRITERS)
def test_whatever_fails_the_old_or_the_new_is_there(tmp_path, name, exists, lasting):
    writer = WRITERS[name]
    writer.write(writer.new, tmp_path / "expected", overwrite=False)
    new = content(tmp_path / "expected")
    number, refused = 0, 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        target = folder / "x"
        if exists:
            writer.write(writer.old, target, overwrite=False)
        old = content(target)
        files = open_files()
        with injected(Faults(number, lasting)) as faults:
            try:
                writer.write(writer.new, target, overwrite=exists)
                outcome = "written"
            except errors.StorageError as error:
                message, outcome = str(error), "refused"
        assert outcome == "written" or message.startswith("cannot write ")
        refused += outcome == "refused"
        call = faults.made[number - 1] if faults.failed else "none"
        assert content(target) in ([old, new] if outcome == "refused" else [new]), (number, call)
        assert open_files() == files, (number, call)
        writer.write(writer.new, target, overwrite=True)
        assert content(target) == new
        assert os.listdir(folder) == ["x"], (number, call)
        if not faults.failed:
            break
    assert refused > number / 3
    assert {"open", "write", "fsync", "close", "lstat"} <= set(faults.made)
    if exists and name in ("unpack", "expand") and sys.platform.startswith("linux"):
        assert {"renameat2", "access", "scandir", "rmdir"} <= set(faults.made)


@pytest.mark.parametrize("full", [errno.EIO, errno.EDQUOT, errno.ENOSPC])
@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_half_done_is_one_error_and_the_old_stays(tmp_path, name, full):
    if not hasattr(errno, "EDQUOT"):
        pytest.skip("no quotas")
    writer = WRITERS[name]
    target = tmp_path / "x"
    writer.write(writer.old, target, overwrite=False)
    old = content(target)
    with injected(Faults(0, full=full)) as faults:
        writer.write(writer.old, target, overwrite=True)
    for number in (n for n, call in enumerate(faults.made, 1) if call == "write"):
        with (
            injected(Faults(number, full=full)),
            pytest.raises(errors.StorageError, match="cannot write"),
        ):
            writer.write(writer.new, target, overwrite=True)
        assert content(target) == old
        assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_clock_that_is_set_loses_nothing_and_leaves_nothing_of_the_same_name(
    tmp_path, monkeypatch, hours
):
    """What is abandoned is known by its lock; its age matters only for other names."""
    save(OLD, tmp_path / "x")
    abandoned = Path(f"{tmp_path}/.x.{'0' * 12}.partial")
    abandoned.write_bytes(b"half")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)
    save(NEW, tmp_path / "x", overwrite=True)
    assert load(tmp_path / "x") == NEW
    assert os.listdir(tmp_path) == ["x"]
    with storage.staging.file(str(tmp_path / "y")) as (held, file):
        os.close(file)
        save(OLD, tmp_path / "x", overwrite=True)
        assert os.path.exists(held)
    assert load(tmp_path / "x") == OLD


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is swept there")
def test_writers_that_do_not_see_each_others_locks_may_fail_and_mix_nothing(tmp_path, monkeypatch):
    """Two hosts on a file system whose locks are each host's own."""
    save(OLD, tmp_path / "x")
    monkeypatch.setattr("fcntl.flock", lambda file, how: None)

    def pieces():
        yield b"first"
        save(NEW, tmp_path / "x", overwrite=True)  # sweeps the half-written file away
        yield b"second"

    with pytest.raises(errors.StorageError, match="cannot write"):
        storage.write(tmp_path / "x", pieces(), overwrite=True)
    assert load(tmp_path / "x") == NEW
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("exists", [False, True], ids=["new", "replaced"])
def test_whatever_fails_a_file_without_its_bank_has_it_beside_it(tmp_path, exists, lasting):
    number, refused = 0, 0
    while True:
        number += 1
        target = tmp_path / str(number) / "x"
        target.parent.mkdir()
        if exists:
            save(OLD, target, bank="external")
        files = open_files()
        with injected(Faults(number, lasting)) as faults:
            try:
                save(OTHER, target, overwrite=exists, bank="external")
            except errors.StorageError as error:
                refused += 1
                message = str(error)
        assert not refused or message.startswith("cannot write ")
        assert open_files() == files
        if exists or target.exists():
            bank_files._shared.clear()
            assert load(target) in (OLD, OTHER)
        save(OTHER, target, overwrite=True, bank="external")
        assert load(target) == OTHER
        assert not [name for name in os.listdir(target.parent) if name.startswith(".")]
        if not faults.failed:
            break
    assert refused > number / 3


def test_reading_a_bank_fails_with_one_error_or_not_at_all(tmp_path):
    save(OLD, tmp_path / "x", bank="external")

    def work() -> bool:
        bank_files._shared.clear()
        return load(tmp_path / "x") == OLD

    *refusals, made = outcomes_of(work)
    assert made.split().count("mmap") == 2
    assert all(line.startswith(("cannot read ", "vector bank not found")) for line in refusals)


@pytest.mark.parametrize("mmap", [True, False])
def test_reading_fails_with_one_error_or_not_at_all(tmp_path, mmap):
    save(wide_indices(), tmp_path / "x")
    *refusals, made = outcomes_of(lambda: load(tmp_path / "x", mmap=mmap) == wide_indices())
    assert ("mmap" if mmap else "read") in made
    assert all(line.startswith("cannot read ") for line in refusals)


@pytest.mark.parametrize("what", ["pack", "verify"])
def test_whoever_reads_a_whole_source_fails_with_one_error(tmp_path, what):
    folder = write_folder(tmp_path / "checkpoint", logits_form())
    save(read(folder), tmp_path / "x")

    def pack() -> bool:
        save(read(folder), tmp_path / "y", overwrite=True)
        return open(tmp_path / "y", "rb").read() == open(tmp_path / "x", "rb").read()

    *refusals, _ = outcomes_of(pack if what == "pack" else lambda: verify(tmp_path / "x").ok)
    assert len(refusals) > 3
    assert all("\n" not in line for line in refusals)


def outcomes_of(work: Callable[[], bool]) -> list[str]:
    """Every call that `work` makes fails in turn: what it says then, where that matters; and at
    last the calls that it makes when all is well."""
    refusals: list[str] = []
    number = 0
    while True:
        number += 1
        files = open_files()
        with injected(Faults(number)) as faults:
            try:
                assert work()
            except errors.VbfmtError as error:
                refusals.append(str(error))
        assert open_files() == files, faults.made
        if not faults.failed:
            return [*refusals, " ".join(faults.made)]


def test_flushed_before_it_counts_and_the_folder_after(tmp_path):
    """The order that a power cut asks for."""
    with injected(Faults(0)) as faults:
        save(NEW, tmp_path / "x")
        created = [name for name in faults.made if name in ("write", "fsync", "link", "replace")]
        faults.made.clear()
        save(OLD, tmp_path / "x", overwrite=True)
        replaced = [name for name in faults.made if name in ("write", "fsync", "link", "replace")]
    assert created == ["write", "fsync", "link", "fsync"]
    assert replaced == ["write", "fsync", "replace", "fsync"]


def test_a_folder_that_cannot_be_flushed_at_all_is_no_error(tmp_path, monkeypatch):
    """Some file systems do not know it."""

    def fsync(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    save(NEW, tmp_path / "x")
    lora.write(NEW, tmp_path / "d")
    assert sorted(os.listdir(tmp_path)) == ["d", "x"]
