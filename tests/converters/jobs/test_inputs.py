"""The inputs of a job, and the names of their outputs."""

from __future__ import annotations

import os

import pytest

from tests.converters.test_peft import logits_form, write_folder
from vbfmt import errors
from vbfmt.converters import jobs

EXPAND, PACK = jobs.Task("expand"), jobs.Task("pack")


@pytest.fixture(autouse=True)
def _in_the_folder(tmp_path, monkeypatch):
    write_folder(tmp_path / "alice", logits_form())
    monkeypatch.chdir(tmp_path)


def test_different_spellings_of_a_path_are_one_input(tmp_path):
    words = [
        "alice",
        "./alice",
        "alice/",
        "alice//",
        str(tmp_path / "alice"),
        f"../{tmp_path.name}/alice",
    ]
    assert jobs.collected(words) == ["alice"]


def test_a_link_is_an_input_of_its_own():
    os.symlink("alice", "bob")
    os.symlink(".", "here")
    assert jobs.collected(["alice", "bob", "here/alice", "here/bob"]) == ["alice", "bob"]


def test_a_missing_path_is_kept_unchanged():
    words = ["hf://owner/name", "./nothing", "nothing", "nothing/"]
    assert jobs.collected(words) == words


@pytest.mark.parametrize("source", [".", "../alice", "./", "../alice/.", "../alice/../alice", ""])
def test_an_output_is_named_after_the_resolved_folder(monkeypatch, source):
    monkeypatch.chdir("alice")
    (item,) = jobs.items([source], "out", PACK)
    assert item.output == os.path.join("out", "alice.vblora")
    (item,) = jobs.items([source], "out", EXPAND)
    assert item.output == os.path.join("out", "alice")


@pytest.mark.parametrize("source", ["..", "../", "x/../.."])
def test_no_output_is_outside_of_its_folder(tmp_path, monkeypatch, source):
    monkeypatch.chdir("alice")
    (tmp_path / "alice" / "x").mkdir()
    (item,) = jobs.items([source], "out", EXPAND)
    assert item.output == os.path.join("out", tmp_path.name)


def test_no_output_is_the_folder_itself():
    (item,) = jobs.items([".vblora"], "out", EXPAND)
    assert item.output == os.path.join("out", ".vblora")
    with pytest.raises(errors.ConfigError, match="without a name"):
        jobs.items(["/"], "out", EXPAND)


def test_outputs_in_different_folders_are_refused():
    """The journal identifies outputs by name."""
    items = [jobs.Item("alice", os.path.join(folder, "x")) for folder in ("one", "two")]
    with pytest.raises(errors.ConfigError, match="in one folder: found one and two"):
        list(jobs.run(PACK, items, workers=1))
    assert not os.path.exists("one")


def test_a_job_that_writes_into_its_input_folder_can_be_run_again(tmp_path):
    write_folder(tmp_path / "bob", logits_form(seed=1))
    for expected in ("done", "present"):
        found = jobs.collected([f"{tmp_path}/*"])
        items = jobs.items(found, tmp_path, PACK)
        assert [os.path.basename(item.source) for item in items] == ["alice", "bob"]
        assert {each.status for each in jobs.run(PACK, items, workers=1)} == {expected}
    (item,) = jobs.items(["alice.vblora"], ".", PACK)  # packed already, which the job will report
    assert item.source == "alice.vblora"


def test_outputs_among_the_inputs_are_reported(tmp_path):
    with pytest.raises(errors.ConfigError, match="one is an output: choose an output folder"):
        jobs.items(["alice.vblora", "alice"], ".", EXPAND)
    with pytest.raises(errors.ConfigError, match="rename one"):
        jobs.items(["alice.vblora", "alice"], "out", EXPAND)
