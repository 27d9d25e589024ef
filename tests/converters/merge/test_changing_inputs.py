"""Inputs that change while a merge runs: the merge fails, or the change has no effect."""

from __future__ import annotations

import os

import pytest

from tests.converters.merge.folders import adapter_of, save_base, tensors_in, weights_of
from vbfmt import errors, save
from vbfmt.converters import merge as merging
from vbfmt.converters.lowrank import combine
from vbfmt.converters.operations.expand import expand
from vbfmt.converters.operations.merge import merge


@pytest.fixture
def sharded(tmp_path):
    return save_base(tmp_path / "base", weights_of(), shards=2)


def rewrite(path):
    """Write a file in place, with the same content and modification time."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.write(path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


NAMES = [
    "config.json",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_base_that_changes_while_it_is_merged_is_refused(tmp_path, sharded, name):
    plan = merging.plan(adapter_of(), sharded)
    rewrite(sharded / name)
    with pytest.raises(errors.StorageError, match="changed while the base was read") as error:
        merging.write(plan, tmp_path / "out")
    assert error.value.file == str(sharded / name)
    assert os.listdir(tmp_path) == ["base"]
    with pytest.raises(errors.StorageError, match="changed while the base was read"):
        list(merging.tensors(plan))


def test_overwriting_a_packed_file_after_it_was_read_has_no_effect(tmp_path, sharded, monkeypatch):
    save(adapter_of(), tmp_path / "x.vblora")
    merge(tmp_path / "x.vblora", tmp_path / "right", base=sharded)
    expand(tmp_path / "x.vblora", tmp_path / "lora")
    write, weighted = merging.write, combine.weighted

    def overwrite():
        with open(tmp_path / "x.vblora", "r+b") as file:
            file.write(b"\xff" * (tmp_path / "x.vblora").stat().st_size)

    def changed_before_writing(*arguments, **options):
        overwrite()
        write(*arguments, **options)

    def changed_before_adding(*arguments, **options):
        overwrite()
        return weighted(*arguments, **options)

    monkeypatch.setattr(merging, "write", changed_before_writing)
    merge(tmp_path / "x.vblora", tmp_path / "out", base=sharded)
    assert tensors_in(tmp_path / "out") == tensors_in(tmp_path / "right")
    (tmp_path / "x.vblora").unlink()
    save(adapter_of(), tmp_path / "x.vblora")
    monkeypatch.setattr("vbfmt.converters.lowrank.combine.weighted", changed_before_adding)
    expand(tmp_path / "x.vblora", tmp_path / "again")
    assert tensors_in(tmp_path / "again") == tensors_in(tmp_path / "lora")
