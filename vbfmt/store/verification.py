"""Verify every object and every name of a store."""

from __future__ import annotations

from collections.abc import Iterator

from vbfmt._files import banks as bank_files
from vbfmt._files.banks import Source
from vbfmt.errors import StoreError, UnknownError, VbfmtError
from vbfmt.packed import Report, loads
from vbfmt.store import layout, names
from vbfmt.store.backend import Backend, Found


def reports(backend: Backend, banks: Source) -> Iterator[Report]:
    """Yield a report on each bank, adapter and name. The adapters' banks are read from `banks`."""
    for prefix in (layout.BANKS, layout.ADAPTERS):
        for stored in backend.entries(prefix):
            yield _of_object(backend, stored.key, banks)
    for stored in backend.entries(layout.NAMES):
        found = backend.found(stored.key)
        if found is not None:
            yield _of_name(backend, found, stored.key)


def _of_object(backend: Backend, key: str, banks: Source) -> Report:
    where, digest, sha256 = backend.address(key), layout.digest_of(key), None
    problems: list[VbfmtError] = []
    content = backend.content(key)
    try:
        if content is None:
            return Report(where, digest, ())  # a collection has just removed it
        if digest is not None:
            loads(content, digest=digest, banks=banks)
        elif (sha256 := layout.bank_of(key)) is not None:
            bank_files.require_intact(content, sha256, len(content), where)
        else:
            raise StoreError("not an object of a store", file=where, advice="remove it")
    except VbfmtError as error:
        problems.append(error.in_file(where))
    return Report(where, digest, tuple(problems))


def _of_name(backend: Backend, found: Found, key: str) -> Report:
    where = backend.address(key)
    try:
        one = names.parse(found, backend, key)
    except StoreError as error:
        return Report(where, None, (error,))
    problem = UnknownError(
        "a name points to an adapter that is not in the store",
        file=where,
        part=f"name {one.name}",
        found=one.digest,
        advice="add the adapter again, or remove the name",
    )
    there = backend.exists(layout.adapter_key(one.digest))
    return Report(f"name {one.name}", one.digest, () if there else (problem,))
