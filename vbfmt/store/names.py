"""Names point to digests. They are changed by compare-and-swap."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from vbfmt.errors import ConflictError, StoreError
from vbfmt.store import layout, record
from vbfmt.store.backend import Backend, Found

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Name:
    """The record of a name in the store.

    Attributes:
        name: the name in its original case.
        digest: the digest that it points to.
    """

    name: str
    digest: str


def read(backend: Backend, name: str) -> tuple[Name, str] | None:
    """Return a name's record and its version, or None if there is none. Case is ignored.

    Raises:
        StoreError: `name` is not valid, or its record is damaged.
    """
    key = layout.name_key(name)
    found = backend.found(key)
    return None if found is None else (parse(found, backend, key), found.version)


def parse(found: Found, backend: Backend, key: str) -> Name:
    """Decode the record of a name that was found at `key`.

    Raises:
        StoreError: the record is damaged, or belongs to another key.
    """
    try:
        fields = record.fields(found.content)
        name, digest = fields["name"], fields["digest"]
        if layout.name_key(name) != key:
            raise ValueError("the record of another name")
        layout.adapter_key(digest)
    except (ValueError, TypeError, KeyError):
        raise StoreError(
            "a name's record is damaged",
            file=backend.address(key),
            found=repr(found.content[:60]),
            expected='{"digest": "sha256:…", "name": …}, with the name of the file',
            advice="set the name again (vbfmt store tag --force), or remove the file",
        ) from None
    return Name(name, digest)


def write(backend: Backend, name: str, digest: str, replaces: str | None) -> None:
    """Make a name point to a digest.

    Args:
        replaces: the digest that the name must point to now; None if it must be new.

    Raises:
        ConflictError: the name points to another digest, or differs only in case from an existing
            name.
        StoreError: `name` is not valid.
    """
    key = layout.name_key(name)
    content = json.dumps({"digest": digest, "name": name}, ensure_ascii=False).encode()
    if replaces is None:
        if backend.create(key, [content]):
            return
        raise conflict(backend, name, None)
    found = read(backend, name)
    if found is None or found[0] != Name(name, replaces):
        raise conflict(backend, name, replaces)
    if not backend.replace(key, content, found[1]):
        raise conflict(backend, name, replaces)


def require_can_point(backend: Backend, name: str, digest: str, replaces: str | None) -> None:
    """Check that `write` would point a name to a digest, or that the name does so already.

    Raises:
        ConflictError: the name points elsewhere, or a name that differs only in case exists.
        StoreError: `name` is not a valid name, or its record is damaged.
    """
    found = read(backend, name)
    now = None if found is None else found[0]
    if now == Name(name, digest) and replaces is None:
        return
    if now != (None if replaces is None else Name(name, replaces)):
        raise conflict(backend, name, replaces)


def overwrite(backend: Backend, name: str, digest: str) -> None:
    """Make a name point to a digest, whatever its record says, even if that is damaged.

    Raises:
        ConflictError: other processes keep changing the name.
    """
    key = layout.name_key(name)
    content = json.dumps({"digest": digest, "name": name}, ensure_ascii=False).encode()
    for _ in range(_ATTEMPTS):
        found = backend.found(key)
        if found is None:
            if backend.create(key, [content]):
                return
        elif backend.replace(key, content, found.version):
            return
        _logger.info("name %s in %s changed meanwhile: trying again", name, backend.where)
    raise conflict(backend, name, "unchanged while it is written")


def remove(backend: Backend, name: str, expected: str | None) -> bool:
    """Remove a name. Return whether it existed.

    Args:
        expected: the digest that the name must point to; None for any.

    Raises:
        ConflictError: the name points to another digest, or was changed meanwhile.
    """
    found = read(backend, name)
    if found is None:
        return False
    if expected is not None and found[0].digest != expected:
        raise conflict(backend, name, expected)
    if not backend.remove(layout.name_key(name), found[1]):
        raise conflict(backend, name, expected)
    return True


def every(backend: Backend) -> Iterator[Name]:
    """Yield all names.

    Raises:
        StoreError: a name's record is damaged.
    """
    for entry in backend.entries(layout.NAMES):
        found = backend.found(entry.key)
        if found is not None:
            yield parse(found, backend, entry.key)


_ATTEMPTS = 20


def conflict(backend: Backend, name: str, expected: str | None) -> ConflictError:
    """Return the error for a name that does not point to the digest `expected`, or that exists
    although `expected` is None."""
    found = read(backend, name)
    if found is not None and found[0].name != name:
        return ConflictError(
            "a name that differs only in case exists",
            file=backend.where,
            part=f"name {name}",
            found=found[0].name,
            advice="choose another name",
        )
    return ConflictError(
        "the name points to another digest" if found else "no such name",
        file=backend.where,
        part=f"name {name}",
        found=found[0].digest if found else None,
        expected=expected or "a new name",
        advice="choose another name, or change this one: `replaces=ANY`"
        if expected is None
        else "see what it points to (vbfmt store list), or change it: `replaces=ANY`",
    )
