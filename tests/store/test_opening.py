"""A folder that is a store, and others."""

from __future__ import annotations

import json
import os

import pytest

from vbfmt import errors
from vbfmt.store import Store, layout


def test_a_folder_that_is_no_store(tmp_path):
    with pytest.raises(errors.StoreError, match=r"not a vbfmt store in .*: found no store.json"):
        Store(tmp_path)
    with pytest.raises(errors.StoreError):
        Store(tmp_path / "nowhere")
    (tmp_path / "something").write_bytes(b"x")
    with pytest.raises(errors.StoreError, match="not empty"):
        Store(tmp_path, create=True)
    assert os.listdir(tmp_path) == ["something"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"vbfmt store": "1"}', '"x"', "null"])
def test_a_store_file_that_says_something_else(tmp_path, content):
    (tmp_path / layout.ROOT).write_text(content)
    with pytest.raises(errors.StoreError, match="not a vbfmt store"):
        Store(tmp_path)


def test_a_newer_layout(store, tmp_path):
    (tmp_path / "s" / layout.ROOT).write_text(json.dumps({"vbfmt store": 2}))
    with pytest.raises(errors.VersionError, match="found 2, expected at most 1; update vbfmt"):
        Store(tmp_path / "s")
