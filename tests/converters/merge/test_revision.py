"""Check whether a base is the one that an adapter names."""

from __future__ import annotations

import pytest

from tests.converters.merge.folders import (
    adapter_of,
    save_base,
    weights_of,
)
from tests.converters.merge.test_refusals import refused
from vbfmt.converters import merge

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path):
    """Return a base in the cache of huggingface_hub."""
    home = tmp_path / "models--a--b"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    return save_base(home / "snapshots" / COMMIT, weights_of())


@pytest.mark.parametrize(
    ("model", "revision", "warned"),
    [
        ("a/b", COMMIT, None),
        ("a/b", "main", None),
        (None, None, None),
        ("a/b", "v2", "revision v2"),
        ("a/b", COMMIT[::-1], f"revision {COMMIT[::-1]}"),
        ("a/c", "main", "a/c"),
        ("a/b", "../../../main", "revision ../../../main"),
    ],
)
def test_a_base_of_another_model_or_revision_gives_a_warning(cached, model, revision, warned):
    adapter = adapter_of(base_model=model, base_revision=revision)
    plan = merge.plan(adapter, cached)
    assert len(plan.notices) == (warned is not None)
    if warned:
        assert warned in plan.notices[0]
        refused(cached, ["not the base that the adapter names", warned], adapter, strict=True)
    else:
        merge.plan(adapter, cached, strict=True)


def test_a_model_whose_name_has_two_hyphens_keeps_them(tmp_path):
    folder = save_base(tmp_path / "models--a--b--c" / "snapshots" / COMMIT, weights_of())
    assert merge.plan(adapter_of(base_model="a/b--c"), folder, strict=True).notices == ()


def test_strict_refuses_a_base_of_unknown_revision(base):
    adapter = adapter_of(base_model="a/b", base_revision="main")
    assert merge.plan(adapter, base).notices == ()
    refused(base, ["whose revision is unknown"], adapter, strict=True)


def test_a_base_given_as_the_adapter_names_it_is_that_base(base):
    plan = merge.plan(adapter_of(base_model=str(base)), base, strict=True)
    assert plan.notices == ()


def test_strict_refuses_a_base_of_unknown_model(base):
    adapter = adapter_of(base_model="a/b")
    assert merge.plan(adapter, base).notices == ()
    refused(base, ["whose model is unknown", "expected a/b"], adapter, strict=True)
