"""Names that clients choose reach adapters in the folder, and nothing else."""

from __future__ import annotations

import os

import pytest

from vbfmt.converters.vllm.resolver import Folder
from vbfmt.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "adapters"
    path.mkdir()
    return path


@pytest.mark.parametrize("name", ["alice", "Zoë", "a b", "v1.2", "-x", "a..b", "x" * 248])
def test_a_file_is_found_by_its_name(folder, name):
    (folder / f"{name}.vblora").touch()
    assert Folder(folder).find(name) == f"{folder}/{name}.vblora"  # invalid, so without a digest


def test_a_name_is_looked_up_at_each_request(folder):
    adapters = Folder(folder)
    assert adapters.find("late") is None
    (folder / "late.vblora").touch()
    assert adapters.find("late") is not None


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../secret", "sub/secret", "sub\\secret", ".hidden", "a\0b", "a\nb", "\ud800"],
)
def test_a_name_that_is_not_a_plain_file_name_finds_nothing(tmp_path, folder, name):
    (folder / "sub").mkdir()
    for path in (tmp_path / "secret", folder / "sub" / "secret", folder / ".hidden"):
        path.with_name(path.name + ".vblora").touch()
    assert Folder(folder).find(name) is None


def test_an_absolute_path_finds_nothing(tmp_path, folder):
    (tmp_path / "secret.vblora").touch()
    assert Folder(folder).find(str(tmp_path / "secret")) is None


@pytest.mark.parametrize("length", [249, 100_000])
def test_a_name_that_is_too_long_for_file_systems_finds_nothing(folder, length):
    assert Folder(folder).find("x" * length) is None


def test_a_link_out_of_the_folder_finds_nothing(tmp_path, folder):
    (tmp_path / "secret.vblora").touch()
    (folder / "link.vblora").symlink_to(tmp_path / "secret.vblora")
    (tmp_path / "adapters-2").mkdir()  # has the folder's name as a prefix
    (tmp_path / "adapters-2" / "x.vblora").touch()
    (folder / "near.vblora").symlink_to(tmp_path / "adapters-2" / "x.vblora")
    assert Folder(folder).find("link") is None
    assert Folder(folder).find("near") is None


def test_links_within_the_folder_are_followed_and_the_folder_may_be_a_link(tmp_path, folder):
    """Kubernetes mounts volumes in this way."""
    (folder / "..data").mkdir()
    (folder / "..data" / "alice.vblora").touch()
    (folder / "alice.vblora").symlink_to("..data/alice.vblora")
    (tmp_path / "mounted").symlink_to(folder)
    assert Folder(tmp_path / "mounted").find("alice") == f"{tmp_path}/mounted/alice.vblora"


def test_a_folder_or_a_pipe_is_not_an_adapter(folder):
    (folder / "folder.vblora").mkdir()
    os.mkfifo(folder / "pipe.vblora")
    (folder / "gone.vblora").symlink_to("nowhere")
    assert [Folder(folder).find(name) for name in ("folder", "pipe", "gone")] == [None] * 3


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_path_that_is_not_a_folder_is_refused(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="no folder of adapters: found"):
        Folder(tmp_path / name)
