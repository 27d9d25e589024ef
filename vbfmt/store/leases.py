"""Leases keep an adapter in the store while a server uses it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from types import TracebackType

from vbfmt.errors import ConflictError, StoreError
from vbfmt.store import layout, record
from vbfmt.store.backend import Backend, Found

SECONDS = 3600.0

LONGEST = 366 * 24 * 3600.0
"""Longest duration of a lease, in seconds."""


class Lease:
    """Keeps an adapter and its bank in the store until `expires`.

    Use it as a context manager, or call `renew` and `close`. A lease that is not renewed expires,
    so the leases of a killed server do not last.

    Attributes:
        digest: digest of the adapter.
        expires: the time when it expires, in seconds since 1970.
    """

    def __init__(self, backend: Backend, digest: str, seconds: float) -> None:
        self._backend = backend
        self._key = f"{layout.LEASES}/{secrets.token_hex(16)}"
        self.digest = digest
        self.expires = _after(seconds)
        backend.create(self._key, [self._content()])

    def renew(self, seconds: float = SECONDS) -> None:
        """Extend the lease to `seconds` from now.

        Raises:
            ConflictError: the lease had expired and was removed.
            StoreError: `seconds` is not a number above 0 and at most `LONGEST`.
        """
        expires = _after(seconds)
        found = self._backend.found(self._key)
        self.expires = expires
        if found is None or not self._backend.replace(self._key, self._content(), found.version):
            raise ConflictError(
                "the lease has expired",
                file=self._backend.where,
                part=self.digest,
                advice="create a new lease, and renew it in time",
            )

    def close(self) -> None:
        """End the lease now."""
        self._backend.delete(self._key)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _content(self) -> bytes:
        return json.dumps({"digest": self.digest, "expires": self.expires}).encode()


def _after(seconds: float) -> float:
    if not 0 < seconds <= LONGEST:
        raise StoreError(
            "invalid duration of a lease",
            found=seconds,
            expected=f"more than 0 and at most {LONGEST:.0f} seconds",
        )
    return time.time() + seconds


def held(backend: Backend, now: float) -> Iterator[str]:
    """Yield the digests of leased adapters, and remove expired leases."""
    for entry in backend.entries(layout.LEASES):
        found = backend.found(entry.key)
        if found is None:
            continue
        digest, expires = _parse(found, backend.address(entry.key), now)
        if expires >= now:
            yield digest
        else:
            backend.remove(entry.key, found.version)


def _parse(found: Found, where: str, now: float) -> tuple[str, float]:
    try:
        fields = record.fields(found.content)
        digest = fields["digest"]
        layout.adapter_key(digest)
        # A lease that never expires would keep the adapter forever.
        latest = now + LONGEST + record.CLOCKS_APART
        return digest, record.time_in(fields, "expires", latest=latest)
    except (ValueError, TypeError, KeyError):
        raise StoreError(
            "a lease is damaged",
            file=where,
            found=repr(found.content[:60]),
            advice="remove it if no server uses this store",
        ) from None
