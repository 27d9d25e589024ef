"""Output folders with a hostile journal."""

from __future__ import annotations

import os
import tracemalloc

import pytest

from spec.golden.make import worked_example
from vbfmt import save
from vbfmt.converters import jobs
from vbfmt.converters.jobs.journal import LARGEST, NAME, Journal
from vbfmt.errors import StorageError


@pytest.fixture
def expand(tmp_path):
    """Run a job with the output folder ``out``, which already has a journal."""
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
        '{"output": "' + "a" * 10_000_000 + '"}',
        '{"output": "a", "done": "x", "digest": "\\u001b[2J"}',
        '{"output": "a", "done": NaN}',
        "\x00" * 1000,
    ],
    ids=[
        "nested",
        "a number",
        "other types",
        "null",
        "a long number",
        "long",
        "escape",
        "NaN",
        "0",
    ],
)
def test_lines_that_no_job_writes_are_ignored(tmp_path, expand, line):
    (tmp_path / "out" / NAME).write_text(line + "\n")
    assert expand() == ["done"]


def test_a_link_is_not_appended_to(tmp_path, expand):
    """Otherwise, the author of the folder could make a job append to any file."""
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / "out" / NAME).symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError, match="not a regular file"):
        expand()
    assert (tmp_path / "victim").read_text() == "theirs"
    assert sorted(os.listdir(tmp_path / "out")) == [NAME]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_does_not_block(tmp_path, expand):
    os.mkfifo(tmp_path / "out" / NAME)
    with pytest.raises(StorageError, match="not a regular file"):
        expand()


def test_a_long_line_takes_no_memory_and_other_lines_are_read(tmp_path):
    whole = b'{"output": "b"}\n'
    (tmp_path / NAME).write_bytes(whole[:-1].replace(b"b", b"a" * 50_000_000) + b"\n" + whole)
    tracemalloc.start()
    try:
        journal = Journal(str(tmp_path), jobs.Task("expand"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert list(journal._known) == ["b"]
    assert peak < 1 << 20


def test_a_journal_that_is_too_long_is_not_read(tmp_path, expand):
    with open(tmp_path / "out" / NAME, "wb") as stream:
        stream.truncate(LARGEST + 1)  # a sparse file
    with pytest.raises(StorageError, match=r"too long.*expected at most 1073741824"):
        expand()


def test_a_link_put_in_place_after_the_check_is_not_followed(tmp_path, monkeypatch):
    """O_NOFOLLOW protects against this; the check beforehand cannot."""
    journal = Journal(str(tmp_path), jobs.Task("expand"))
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / NAME).symlink_to(tmp_path / "victim")
    monkeypatch.setattr(os.path, "islink", lambda path: False)
    with pytest.raises(StorageError, match="not a regular file"):
        journal._append([{"output": "x"}])
    assert (tmp_path / "victim").read_text() == "theirs"
