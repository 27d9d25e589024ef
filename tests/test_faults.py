"""Each call to the operating system fails, once or from then on: the old or the new output is
complete, the error is one of the library, and nothing is left after the next write."""

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
    """Do not really flush, because this is slow; flushes are only counted and made to fail. Close
    files that earlier tests have left to the garbage collector."""
    gc.collect()
    monkeypatch.setattr(os, "fsync", lambda file: None)


class Writer(NamedTuple):
    """A function that writes an adapter to a path."""

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
    """Return the content of a path: the bytes of a file, the bytes by name of a folder, or None."""
    if path.is_dir():
        return {entry.name: entry.read_bytes() for entry in sorted(path.iterdir())}
    return path.read_bytes() if path.exists() else None


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("exists", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("name", WRITERS)
def test_any_failed_call_leaves_the_old_or_the_new_output(tmp_path, name, exists, lasting):
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
def test_a_partial_write_is_one_error_and_the_old_output_is_kept(tmp_path, name, full):
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
def test_setting_the_clock_loses_nothing_and_leaves_no_files(tmp_path, monkeypatch, hours):
    """Abandoned files are recognized by their locks. Their age matters only for other names."""
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
def test_writers_without_common_locks_may_fail_but_do_not_mix_files(tmp_path, monkeypatch):
    """For example, two hosts on a file system that does not share locks."""
    save(OLD, tmp_path / "x")
    monkeypatch.setattr("fcntl.flock", lambda file, how: None)

    def pieces():
        yield b"first"
        save(NEW, tmp_path / "x", overwrite=True)  # removes the partial file
        yield b"second"

    with pytest.raises(errors.StorageError, match="cannot write"):
        storage.write(tmp_path / "x", pieces(), overwrite=True)
    assert load(tmp_path / "x") == NEW
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("exists", [False, True], ids=["new", "replaced"])
def test_any_failed_call_leaves_a_thin_file_with_its_bank(tmp_path, exists, lasting):
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


def test_reading_a_bank_succeeds_or_gives_one_error(tmp_path):
    save(OLD, tmp_path / "x", bank="external")

    def work() -> bool:
        bank_files._shared.clear()
        return load(tmp_path / "x") == OLD

    *refusals, made = outcomes_of(work)
    assert made.split().count("mmap") == 2
    assert all(line.startswith(("cannot read ", "vector bank not found")) for line in refusals)


@pytest.mark.parametrize("mmap", [True, False])
def test_reading_succeeds_or_gives_one_error(tmp_path, mmap):
    save(wide_indices(), tmp_path / "x")
    *refusals, made = outcomes_of(lambda: load(tmp_path / "x", mmap=mmap) == wide_indices())
    assert ("mmap" if mmap else "read") in made
    assert all(line.startswith("cannot read ") for line in refusals)


@pytest.mark.parametrize("what", ["pack", "verify"])
def test_reading_a_whole_source_succeeds_or_gives_one_error(tmp_path, what):
    folder = write_folder(tmp_path / "checkpoint", logits_form())
    save(read(folder), tmp_path / "x")

    def pack() -> bool:
        save(read(folder), tmp_path / "y", overwrite=True)
        return open(tmp_path / "y", "rb").read() == open(tmp_path / "x", "rb").read()

    *refusals, _ = outcomes_of(pack if what == "pack" else lambda: verify(tmp_path / "x").ok)
    assert len(refusals) > 3
    assert all("\n" not in line for line in refusals)


def outcomes_of(work: Callable[[], bool]) -> list[str]:
    """Let each system call of `work` fail in turn. Return the errors, and the calls that it makes
    without faults."""
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


def test_a_file_is_flushed_before_it_is_renamed_and_its_folder_after(tmp_path):
    """This order is safe against power cuts."""
    with injected(Faults(0)) as faults:
        save(NEW, tmp_path / "x")
        created = [name for name in faults.made if name in ("write", "fsync", "link", "replace")]
        faults.made.clear()
        save(OLD, tmp_path / "x", overwrite=True)
        replaced = [name for name in faults.made if name in ("write", "fsync", "link", "replace")]
    assert created == ["write", "fsync", "link", "fsync"]
    assert replaced == ["write", "fsync", "replace", "fsync"]


def test_a_folder_that_cannot_be_flushed_at_all_is_not_an_error(tmp_path, monkeypatch):
    """Some file systems do not support it."""

    def fsync(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    save(NEW, tmp_path / "x")
    lora.write(NEW, tmp_path / "d")
    assert sorted(os.listdir(tmp_path)) == ["d", "x"]
