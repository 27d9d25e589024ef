"""The backend for a store in a bucket of S3, or of a compatible server, through obstore.

An object is created only if it does not exist (``If-None-Match``). A small object that may change
is replaced only if its ETag is unchanged (``If-Match``). Not all servers support conditional
removal, so a small object is removed by making it empty; an empty object counts as missing.

The endpoint and the credentials come from the environment variables that AWS's tools use
(``AWS_ACCESS_KEY_ID``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``, …).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any, cast

from vbfmt._files import PathLike, storage
from vbfmt._format.container import Bytes
from vbfmt.errors import MissingExtraError, StorageError
from vbfmt.store import record
from vbfmt.store.backend import Found, Stored, has_content

SCHEME = "s3://"

_OPTIONS: dict[str, Any] = {"connect_timeout": "10s", "timeout": "120s"}


def cache_folder(address: str, given: PathLike | None) -> str:
    """Return the local folder for the catalog and the files of a store."""
    if given is not None:
        return os.path.abspath(given)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(home, "vbfmt", hashlib.sha256(address.encode()).hexdigest()[:16])


class Bucket:
    """The objects below an address ``s3://bucket/prefix``.

    Raises:
        MissingExtraError: obstore is not installed.
        StorageError: obstore does not accept the address or the environment variables.
    """

    def __init__(self, address: str, cache: str) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ModuleNotFoundError:
            raise MissingExtraError.of("stores on S3 need obstore", "s3") from None
        self._address = address.rstrip("/")
        self._cache = cache
        self._obstore: Any = obstore
        with self._errors("cannot open", ""):
            plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
            options = {**_OPTIONS, "allow_http": True} if plain else _OPTIONS
            self._store: Any = cast("Any", from_url)(self._address, client_options=options)

    @property
    def where(self) -> str:
        """See `Backend.where`."""
        return self._address

    def address(self, key: str) -> str:
        """See `Backend.address`."""
        return f"{self._address}/{key}"

    def file(self, key: str) -> str:
        """See `Backend.file`. The path is that of a local copy, which is fetched once."""
        path = os.path.join(self._cache, *key.split("/"))
        if not os.path.exists(path):
            content = self.content(key)
            if content is None:
                raise FileNotFoundError(self.address(key))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            storage.write(path, [content], overwrite=True)
        return path

    def content(self, key: str) -> Bytes | None:
        """See `Backend.content`."""
        found = self.found(key)
        return None if found is None else found.content

    def exists(self, key: str) -> bool:
        """See `Backend.exists`."""
        with self._errors("cannot read", key):
            try:
                return bool(self._obstore.head(self._store, key)["size"])
            except FileNotFoundError:
                return False

    def create(self, key: str, pieces: Iterable[Bytes]) -> bool:
        """See `Backend.create`."""
        content = b"".join(bytes(piece) for piece in pieces)
        if self._put(key, content, "create"):
            return True
        found = self._read(key)
        if found is not None and not found.content:
            return self._put(key, content, {"e_tag": found.version})
        # If a request was sent twice, the second finds what the first has written.
        return found is not None and found.content == content and _changes(key)

    def found(self, key: str) -> Found | None:
        """See `Backend.found`; the version is the ETag."""
        found = self._read(key)
        return found if found is not None and found.content else None

    def replace(self, key: str, content: bytes, version: str) -> bool:
        """See `Backend.replace`."""
        if self._put(key, content, {"e_tag": version}):
            return True
        found = self._read(key)
        return found is not None and bool(content) and found.content == content

    def remove(self, key: str, version: str) -> bool:
        """See `Backend.remove`."""
        return self._put(key, b"", {"e_tag": version})

    def discard(self, key: str, mark: str, content: bytes) -> bool:
        """See `Backend.discard`. The server cannot compare and remove in one step.

        If the mark changes in between, another process needs the object: this one was suspended for
        so long that the other took it for dead. The object is then written again.
        """
        if not has_content(self, mark, content):
            return False
        removed = self.content(key)
        self.delete(key)
        if not has_content(self, mark, content):
            if removed is not None:
                self.create(key, [removed])
            return False
        self.delete(mark)
        return True

    def delete(self, key: str) -> None:
        """See `Backend.delete`."""
        with self._errors("cannot remove", key), contextlib.suppress(FileNotFoundError):
            self._obstore.delete(self._store, key)

    def entries(self, prefix: str) -> Iterator[Stored]:
        """See `Backend.entries`."""
        with self._errors("cannot list", prefix):
            for chunk in self._obstore.list(self._store, prefix=prefix or None):
                for one in chunk:
                    if one["size"]:
                        modified = one["last_modified"].timestamp()
                        yield Stored(one["path"], one["size"], modified, one["e_tag"] or "")

    def tidy(self) -> None:
        """See `Backend.tidy`. There is nothing to do, because uploads leave no temporary files."""

    def stamps(self, prefix: str) -> dict[str, str | None]:
        """See `Backend.stamps`. All keys are one group without a stamp: only a listing shows
        changes."""
        return {prefix: None}

    def _read(self, key: str) -> Found | None:
        with self._errors("cannot read", key):
            try:
                result = self._obstore.get(self._store, key)
                if _changes(key) and result.meta["size"] > record.LONGEST:
                    return Found(bytes(record.LONGEST + 1), result.meta["e_tag"])  # not a record
                return Found(bytes(result.bytes()), result.meta["e_tag"])
            except FileNotFoundError:
                return None

    def _put(self, key: str, content: bytes, mode: object) -> bool:
        """Write an object under a condition. Return whether the condition held."""
        refused = self._obstore.exceptions
        with self._errors("cannot write", key):
            try:
                self._obstore.put(self._store, key, content, mode=mode, use_multipart=False)
            except (
                refused.AlreadyExistsError,
                refused.PreconditionError,
                FileNotFoundError,  # the object to replace does not exist
            ):
                return False
        return True

    @contextlib.contextmanager
    def _errors(self, what: str, key: str) -> Iterator[None]:
        try:
            yield
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise StorageError(what, file=self.address(key), found=lines[0]) from None


def _changes(key: str) -> bool:
    """Return whether the object at `key` may change. Other objects need no version."""
    return not key.startswith(("adapters/", "banks/"))
