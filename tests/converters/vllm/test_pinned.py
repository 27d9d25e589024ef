"""A packed file and its digest in one path."""

from __future__ import annotations

import pytest

from tests.converters.gguf.random_adapter import random_adapter
from vbfmt import save
from vbfmt.converters.vllm import lora_path, pinned
from vbfmt.converters.vllm.pinned import Pinned
from vbfmt.errors import ConfigError, DigestError, MissingFileError, StorageError, VbfmtError

SIZES = {"layers": 1, "hidden": 32, "feed": 48, "kv": 16, "b": 8}


@pytest.fixture
def adapter():
    return random_adapter(**SIZES)


@pytest.fixture
def path(tmp_path, adapter):
    save(adapter, tmp_path / "x.vblora")
    return tmp_path / "x.vblora"


def test_the_path_has_the_digest_and_loads_the_adapter(path, adapter):
    text = lora_path(path)
    assert text.startswith(f"{path}@sha256:")
    parsed = Pinned.parse(text)
    assert str(parsed) == text
    assert parsed.load() == adapter


def test_a_relative_path_becomes_absolute(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    assert lora_path("x.vblora") == lora_path(path)


def test_another_file_of_the_same_name_has_another_path_and_is_refused(path):
    old = lora_path(path)
    save(random_adapter(**SIZES, seed=1), path, overwrite=True)
    assert lora_path(path) != old
    with pytest.raises(DigestError, match=f"asked for in {path}: found sha256:.*expected sha256:"):
        Pinned.parse(old).load()


@pytest.mark.parametrize("text", ["/some/folder", "owner/name", "/x.vblora@sha256:00", "x@y", ""])
def test_other_paths_are_left_to_vllm(text):
    assert Pinned.parse(text) is None


def test_a_packed_file_without_a_digest_is_refused_with_its_digest(path):
    with pytest.raises(ConfigError, match=f"needs its digest.*expected {lora_path(path)}; without"):
        Pinned.parse(str(path))


def test_damaged_and_missing_files_are_errors(path):
    with pytest.raises(MissingFileError, match="cannot read .*nothing.vblora: no such file"):
        lora_path(path.with_name("nothing.vblora"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(VbfmtError, match=f"in {path}"):
        lora_path(path)
    with pytest.raises(VbfmtError, match=f"in {path}"):
        Pinned.parse(str(path))


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not the name of a packed adapter: found .*x.bin"):
        lora_path(tmp_path / "x.bin")


def test_a_file_too_large_for_memory_is_not_read(path, monkeypatch):
    monkeypatch.setattr(pinned, "LARGEST", 1000)
    with pytest.raises(StorageError, match=r"too large to be served .*found \d+ bytes"):
        lora_path(path)
