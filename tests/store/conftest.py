"""An empty store in a folder."""

from __future__ import annotations

import os
import warnings

import pytest

from vbfmt.store import Store


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def store(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Store(tmp_path / "s", create=True) as store:
            yield store
