"""Output folders from strangers: their journal is anything but what a job writes."""

from __future__ import annotations

import os

import pytest

from spec.golden.make import worked_example
from vbfmt import save
from vbfmt.converters import jobs
from vbfmt.converters.jobs.journal import NAME
from vbfmt.errors import StorageError


@pytest.fixture
def expand(tmp_path):
    """Run a job into ``out``, whose journal is there already."""
    save(worked_example(), tmp_path / "a.vblora")
    (tmp_path / "out").mkdir()

    def run():
        task = jobs.Task("expand")
        items = jobs.items([str(tmp_path / "a.vblora")], tmp_path / "out", task)
        return [outcome.status for outcome in jobs.run(task, items, workers=1)]

    return run


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"output": 5}',
        '{"output": "a", "done": [], "digest": {}}',
        "null",
        '{"output": "a", "done": ' + "9" * 5000 + "}",
    ],
    ids=["nested", "a number", "other types", "null", "a long number"],
)
def test_lines_that_no_job_writes_are_ignored(tmp_path, expand, line):
    (tmp_path / "out" / NAME).write_text(line + "\n")
    assert expand() == ["done"]


def test_a_link_is_not_appended_to(tmp_path, expand):
    """Whoever made the folder would choose the file."""
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / "out" / NAME).symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError, match="not a regular file"):
        expand()
    assert (tmp_path / "victim").read_text() == "theirs"
    assert sorted(os.listdir(tmp_path / "out")) == [NAME]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path, expand):
    os.mkfifo(tmp_path / "out" / NAME)
    with pytest.raises(StorageError, match="not a regular file"):
        expand()
