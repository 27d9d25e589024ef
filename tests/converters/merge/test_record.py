"""The record of a merge in its output."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("safetensors")

from safetensors.numpy import load_file, save_file

from tests.converters.merge.folders import adapter_of, save_base, weights_of
from vbfmt import digest, errors
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
def test_a_file_that_a_record_does_not_name_is_found(tmp_path, content, words):
    (tmp_path / "other").touch()
    if content is not None:
        (tmp_path / record.NAME).write_text(content)
    assert record.unrecorded_in(str(tmp_path)) == words


@pytest.mark.parametrize("adapters", [None, "none", {"digest": "a"}, [1], [{"digest": 2}], [{}]])
def test_a_folder_whose_earlier_record_cannot_be_read_is_refused(tmp_path, adapters):
    """Otherwise, an adapter that it names would be merged a second time."""
    path = merged(tmp_path) / record.NAME
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "adapters": adapters}))
    with pytest.raises(errors.SourceError, match=r"record of merged adapters.*adapters") as caught:
        merge.plan(adapter_of(), path.parent)
    assert caught.value.file == str(path)


@pytest.mark.parametrize("digests", ["1", '"sha256:a"', '{"sha256:a": 1}', "[1]", "[null]", "["])
def test_a_shard_whose_earlier_record_cannot_be_read_is_refused(tmp_path, digests):
    path = merged(tmp_path) / "model.safetensors"
    save_file(load_file(path), path, metadata={record.KEY: digests})
    with pytest.raises(errors.SourceError, match="record of merged adapters.*__metadata__"):
        merge.plan(adapter_of(), path.parent)


def test_an_earlier_record_names_the_merged_adapters(tmp_path):
    folder = merged(tmp_path)
    assert record.earlier_digests(merge.base.read(folder)) == [digest(adapter_of())]


def merged(tmp_path):
    """Merge an adapter into a base, and return the folder."""
    base = save_base(tmp_path / "base", weights_of())
    merge.write(merge.plan(adapter_of(), base), tmp_path / "out")
    return tmp_path / "out"
