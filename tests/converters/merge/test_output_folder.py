"""Where a merge may be written."""

from __future__ import annotations

import os

import pytest

from tests.converters.merge.folders import (
    adapter_of,
    others_beside,
)
from tests.converters.merge.test_refusals import refused
from vbfmt import errors
from vbfmt.converters import merge
from vbfmt.converters.merge import refusals


def test_a_folder_that_appears_in_the_meantime_is_left_alone(tmp_path, base):
    out = tmp_path / "out"

    def appears(count):
        out.mkdir(exist_ok=True)
        (out / "somebodys").touch()

    plan = merge.plan(adapter_of(), base)
    with pytest.raises(errors.OutputExistsError):
        merge.write(plan, out, progress=appears)
    with pytest.raises(errors.TargetError, match="not replaced"):
        merge.write(plan, out, overwrite=True, progress=appears)
    assert [path.name for path in out.iterdir()] == ["somebodys"]
    assert others_beside(out) == ["base"]


def test_an_output_inside_the_base_is_refused(base):
    plan = merge.plan(adapter_of(), base)
    for path in (base, base / "out", base / ".." / "base" / "deep" / "out"):
        with pytest.raises(errors.TargetError, match="inside the base"):
            merge.write(plan, path, overwrite=True)
    assert sorted(path.name for path in base.iterdir()) == ["config.json", "model.safetensors"]


def test_a_missing_parent_folder_is_refused(tmp_path, base):
    plan = merge.plan(adapter_of(), base)
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.TargetError, match="no folder to write into"):
        merge.require_output(plan, tmp_path / "file" / "out", overwrite=False)


def test_a_disk_that_is_too_small_is_reported(tmp_path, base, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(refusals.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(errors.StorageError, match=r"not enough space .* found 1000 bytes free"):
        merge.write(merge.plan(adapter_of(), base), tmp_path / "out")
    assert others_beside(tmp_path / "out") == ["base"]


def test_existing_output_is_replaced_only_on_request(tmp_path, base):
    out = tmp_path / "out"
    plan = merge.plan(adapter_of(), base)
    merge.write(plan, out)
    before = (out / "model.safetensors").read_bytes()
    other = merge.plan(adapter_of(seed=5), base)
    with pytest.raises(errors.OutputExistsError):
        merge.write(other, out)
    assert (out / "model.safetensors").read_bytes() == before
    merge.write(other, out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() != before
    assert others_beside(out) == ["base"]


@pytest.mark.parametrize("stranger", ["an empty folder", "a link", "a link to a folder"])
def test_an_output_with_an_unknown_empty_folder_or_link_is_not_replaced(tmp_path, base, stranger):
    """Earlier, --force removed them."""
    out = tmp_path / "out"
    plan = merge.plan(adapter_of(), base)
    merge.write(plan, out)
    if stranger == "an empty folder":
        (out / stranger).mkdir()
    else:
        (out / stranger).symlink_to(base if "folder" in stranger else base / "config.json")
    with pytest.raises(errors.TargetError, match=f"not replaced in .*: found {stranger}"):
        merge.write(plan, out, overwrite=True)
    assert (out / stranger).exists()


def test_a_mount_point_is_refused_before_anything_is_written(tmp_path, base, monkeypatch):
    """Earlier, everything was written to the parent's disk, and could then not be moved into
    place."""
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(refusals.os.path, "ismount", lambda path: path == str(out))
    with pytest.raises(errors.TargetError, match="a mount point"):
        merge.require_output(merge.plan(adapter_of(), base), out, overwrite=True)


def test_a_side_file_that_cannot_be_read_is_found_before_anything_is_written(base, monkeypatch):
    """Earlier, a dry run did not detect it."""
    (base / "tokenizer.json").touch()

    def denied(path, *rest):
        if str(path).endswith("tokenizer.json"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest)

    opened = os.open
    monkeypatch.setattr(os, "open", denied)
    refused(base, ["cannot read", "tokenizer.json", "permission denied"], kind=errors.StorageError)


@pytest.mark.parametrize("stranger", ["notes.txt", "gguf/model.gguf"])
def test_a_folder_with_unknown_files_is_never_replaced(tmp_path, base, stranger):
    out = tmp_path / "out"
    plan = merge.plan(adapter_of(), base)
    merge.write(plan, out)
    (out / stranger).parent.mkdir(exist_ok=True)
    (out / stranger).write_text("mine")
    with pytest.raises(errors.TargetError, match=f"not replaced in .*: found {stranger}"):
        merge.write(plan, out, overwrite=True)
    assert (out / stranger).read_text() == "mine"


def test_a_folder_that_no_merge_wrote_is_never_replaced(tmp_path, base):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(errors.TargetError, match="not replaced"):
        merge.write(merge.plan(adapter_of(), base), out, overwrite=True)
    assert (out / "thesis.tex").read_text() == "years of work"
