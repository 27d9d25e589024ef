"""Open a store: choose its backend, and check that it is a store."""

from __future__ import annotations

import json
import os

from vbfmt._files import PathLike, storage
from vbfmt.errors import StoreError, VersionError
from vbfmt.store import catalog, layout, record, s3
from vbfmt.store.backend import Backend, Found
from vbfmt.store.folder import Folder


def backend_at(path: str, cache: PathLike | None) -> tuple[Backend, str]:
    """Return the backend for a path or an address, and the path of the store's catalog."""
    if path.startswith(s3.SCHEME):
        folder = os.path.abspath(s3.cache_folder(path, cache))
        with storage.refusing("cannot write", folder):
            os.makedirs(folder, exist_ok=True)
        return s3.Bucket(path, folder), os.path.join(folder, catalog.FILE)
    if os.path.isfile(path):
        raise StoreError(
            "not a vbfmt store",
            file=path,
            found="a file",
            expected="a folder",
            advice="give the store first: vbfmt store add STORE FILE",
        )
    folder = os.path.abspath(path)  # SQLite would read a relative `file:x` as a URI
    return Folder(folder), os.path.join(folder, catalog.FILE)


def _require_outside(path: str) -> None:
    """Refuse a folder in another store, which would treat the contents as its own.

    Raises:
        StoreError: the folder is in another store, which the message names.
    """
    above = os.path.dirname(os.path.realpath(path))
    while not os.path.exists(os.path.join(above, layout.ROOT)):
        below, above = above, os.path.dirname(above)
        if below == above:
            return
    raise StoreError(
        "a store inside another store",
        file=path,
        found=f"{layout.ROOT} in {above}",
        advice="choose a folder outside of it",
    )


def _created(backend: Backend) -> Found:
    """Create a store where nothing is, and return its root, which another process may have created.

    Raises:
        StoreError: something else is there.
    """
    if isinstance(backend, Folder):
        _require_outside(backend.where)
    is_empty = not any(True for _ in backend.entries(""))
    if is_empty:
        backend.create(layout.ROOT, [json.dumps({"vbfmt store": layout.VERSION}).encode()])
    found = backend.found(layout.ROOT)
    if found is None:
        raise StoreError(
            "not a vbfmt store, and not empty", file=backend.where, advice="choose a new folder"
        )
    return found


def require_store(backend: Backend, *, create: bool) -> None:
    """Check that there is a store; create it if `create` is set and there is nothing.

    Raises:
        StoreError: there is no store, or something else is there.
        VersionError: the store has a newer layout.
    """
    found = backend.found(layout.ROOT)
    if found is None:
        if not create:
            raise StoreError(
                "not a vbfmt store",
                file=backend.where,
                found=f"no {layout.ROOT}",
                advice="make one: vbfmt store add",
            )
        found = _created(backend)
    try:
        version = record.fields(found.content)["vbfmt store"]
        if type(version) is not int or version < 1:
            raise ValueError("not a version")
    except (ValueError, KeyError):
        raise StoreError(
            "not a vbfmt store", file=backend.address(layout.ROOT), found=repr(found.content[:60])
        ) from None
    if version > layout.VERSION:
        raise VersionError(
            "the store has a newer layout",
            file=backend.where,
            found=version,
            expected=f"at most {layout.VERSION}",
            advice="update vbfmt",
        )
