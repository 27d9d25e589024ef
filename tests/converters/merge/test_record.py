"""The record of a merge in its output."""

from __future__ import annotations

import json

import pytest

from tests.converters.merge.folders import adapter_of, save_base, weights_of
from vbfmt import digest
from vbfmt.converters import merge
from vbfmt.converters.merge import record


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no vbfmt_merge.json"),
        ("{", "an unreadable vbfmt_merge.json"),
        ('{"files": "all"}', "an unreadable vbfmt_merge.json"),
        ('{"files": []}', "other"),
        ('{"files": ["./other"]}', None),
    ],
)
def test_what_a_record_does_not_name_is_somebodys(tmp_path, content, words):
    (tmp_path / "other").touch()
    if content is not None:
        (tmp_path / record.NAME).write_text(content)
    assert record.unrecorded_in(str(tmp_path)) == words


def test_entries_of_an_earlier_record_that_say_nothing_are_passed_over(tmp_path):
    base = save_base(tmp_path / "base", weights_of())
    merge.write(merge.plan(adapter_of(), base), tmp_path / "out")
    path = tmp_path / "out" / record.NAME
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "adapters": [1, {"digest": 2}, *fields["adapters"]]}))
    assert record.earlier_digests(merge.base.read(tmp_path / "out")) == [digest(adapter_of())]
