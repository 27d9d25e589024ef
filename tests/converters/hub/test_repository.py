"""The ways to name a repository, including the addresses of its pages."""

from __future__ import annotations

import pytest

from vbfmt.converters.hub.repository import Repo, parse
from vbfmt.errors import SourceError

SITE = "https://huggingface.co"


@pytest.mark.parametrize(
    ("address", "repo"),
    [
        (f"{SITE}/me/adapter", Repo("me/adapter")),
        (f"{SITE}/me/adapter/", Repo("me/adapter")),
        (f"{SITE}/me/adapter?library=peft#usage", Repo("me/adapter")),
        ("http://www.huggingface.co/me/adapter", Repo("me/adapter")),
        ("huggingface.co/me/adapter", Repo("me/adapter")),
        ("hf.co/me/adapter", Repo("me/adapter")),
        (f"{SITE}/me/adapter/tree/main", Repo("me/adapter", "main")),
        (f"{SITE}/me/adapter/tree/refs%2Fpr%2F3", Repo("me/adapter", "refs/pr/3")),
        (f"{SITE}/me/adapter/commit/0123abc", Repo("me/adapter", "0123abc")),
        (f"{SITE}/me/adapter/blob/main/x.vblora", Repo("me/adapter", "main", "x.vblora")),
        (f"{SITE}/me/a/resolve/v2/b/x.vblora?download=true", Repo("me/a", "v2", "b/x.vblora")),
        (f"{SITE}/me/a/raw/v2/my%20x.vblora", Repo("me/a", "v2", "my x.vblora")),
    ],
)
def test_the_url_of_a_page_names_its_repository(address, repo):
    assert parse(address) == repo


@pytest.mark.parametrize(
    "address",
    [
        f"{SITE}/me",
        f"{SITE}/datasets/me/x",
        f"{SITE}/spaces/me/x",
        f"{SITE}/me/adapter/discussions/1",
        f"{SITE}/me/adapter/tree/main/folder",
        f"{SITE}/me/adapter/blob",
        f"{SITE}/me/adapter/blob/main/../x",
        f"{SITE}/me/adapter/blob/main/%2e%2e/x",
        f"{SITE}/../adapter",
    ],
)
def test_any_other_page_is_refused(address):
    with pytest.raises(SourceError, match="not a page of a model on the Hub"):
        parse(address)


def test_a_url_with_a_revision_accepts_no_other_revision():
    with pytest.raises(SourceError, match="two different revisions"):
        parse(f"{SITE}/me/adapter/tree/main", "v2")
    assert parse(f"{SITE}/me/adapter", "v2") == Repo("me/adapter", "v2")


@pytest.mark.parametrize("address", ["https://example.org/me/adapter", "huggingface.co.evil/me/x"])
def test_urls_of_other_sites_are_paths(address):
    assert parse(address) is None
