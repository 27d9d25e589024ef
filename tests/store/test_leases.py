"""Leases: how long they last, and the effect of damaged ones."""

from __future__ import annotations

import json

import pytest

from tests.store.adapters import adapter
from vbfmt import errors
from vbfmt.store import layout, leases


@pytest.mark.parametrize("seconds", [0, -1, leases.LONGEST + 1, float("inf"), float("nan")])
def test_an_invalid_time_is_refused_and_changes_nothing(store, seconds):
    digest = store.add(adapter(1))
    with pytest.raises(errors.StoreError, match="invalid duration of a lease: found"):
        store.lease(digest, seconds=seconds)
    assert list(store._backend.entries(layout.LEASES)) == []
    with store.lease(digest) as lease:
        before = lease.expires
        with pytest.raises(errors.StoreError, match="invalid duration of a lease: found"):
            lease.renew(seconds)
        assert lease.expires == before
        assert list(leases.held(store._backend, before)) == [digest]


_DIGEST = "sha256:" + 64 * "0"


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"digest": "x"}',
        b'{"digest": "x", "expires": 1}',
        *(
            f'{{"digest": "{_DIGEST}", "expires": {expires}}}'.encode()
            for expires in (
                '"soon"',
                "NaN",
                "Infinity",
                "-Infinity",
                "1e999",
                "-1",
                "true",
                "null",
                "1e11",
                "9" * 300,
                "9" * 2000,
                "1" + " " * 5000,
            )
        ),
        b"[" * 100_000,
    ],
)
def test_a_damaged_lease_stops_the_collection_with_an_error(store, content):
    digest = store.add(adapter(1))
    path = store._backend.address(f"{layout.LEASES}/damaged")
    store._backend.create(f"{layout.LEASES}/damaged", [content])
    with pytest.raises(errors.StoreError, match="a lease is damaged") as error:
        store.gc(grace=0)
    assert error.value.file == path
    assert store.open(digest) == adapter(1)


def test_a_lease_that_ends_during_listing_protects_nothing(store, monkeypatch):
    digest = store.add(adapter(1))
    lease = store.lease(digest)
    backend = store._backend
    listed = list(backend.entries(layout.LEASES))
    monkeypatch.setattr(backend, "entries", lambda prefix: iter(listed))
    assert list(leases.held(backend, lease.expires)) == [digest]
    lease.close()
    assert list(leases.held(backend, lease.expires)) == []


def test_a_lease_of_a_removed_adapter_is_refused_and_not_recorded(store, monkeypatch):
    digest = store.add(adapter(1))
    monkeypatch.setattr(type(store), "resolve", lambda self, name: digest)
    store._backend.delete(layout.adapter_key(digest))
    with pytest.raises(errors.UnknownError, match=f"no such adapter .*found {digest}"):
        store.lease("x")
    assert list(store._backend.entries(layout.LEASES)) == []


def test_the_record_of_a_lease(store):
    digest = store.add(adapter(1))
    with store.lease(digest, seconds=50) as lease:
        (entry,) = store._backend.entries(layout.LEASES)
        record = json.loads(store._backend.found(entry.key).content)
    assert record == {"digest": digest, "expires": lease.expires}
