"""Mark objects that are no longer needed, and remove them after a grace period.

An adapter is needed if a name or a lease points to it; a bank is needed if an adapter in the store
uses it. An object that is not needed gets a mark with the current time. A later collection removes
the object if the mark is still there and old enough. So a reader that has resolved a name has at
least the grace period to read the adapter, or longer with a lease.

Writers and collectors may run at the same time, in several processes or on several machines. Every
change of a mark is a compare-and-swap. A collector sets the mark to *removing* before it removes an
object. A process that needs an object (to add it again, name it or lease it) removes the mark
first. So one of the two always notices the other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from vbfmt.errors import StorageError
from vbfmt.store import layout, record
from vbfmt.store.backend import Backend, Found, Stored

_logger = logging.getLogger(__name__)

GRACE = 24 * 3600.0
"""Seconds between an object's mark and its removal."""

_PATIENCE = 60.0
"""Seconds after which a collector that has not finished a removal is considered dead. Another one
may then take over."""


@dataclass(frozen=True)
class Mark:
    """The time since when an object has been unneeded, or, if `removing`, when its removal
    began."""

    since: float
    removing: bool

    def content(self) -> bytes:
        """Return the mark in its stored form."""
        return json.dumps({"since": self.since, "removing": self.removing}).encode()


def mark_of(backend: Backend, key: str, now: float) -> tuple[Mark | None, str] | None:
    """Return an object's mark and the mark's version, or None if it has no mark.

    Instead of a damaged mark, return None with its version.

    Args:
        now: seconds since 1970. A mark of a later time is damaged.
    """
    found = backend.found(layout.unreferenced_key(key))
    return None if found is None else (_parse(found, now), found.version)


def revive(
    backend: Backend, key: str, *, now: Callable[[], float] = time.time, pause: float = 0.02
) -> bool:
    """Remove the mark of an object before a reference to it is added, or after one is removed.

    So its grace period starts again when a later collection finds it unneeded.

    Returns:
        Whether the object exists.

    Raises:
        StorageError: another process is removing it and does not finish.
    """
    start = now()
    while start <= now() < start + 2 * _PATIENCE:  # or until the clock is set back
        found = mark_of(backend, key, now())
        if found is None:
            return backend.exists(key)
        mark, version = found
        if mark is not None and mark.removing and now() - mark.since < _PATIENCE:
            _logger.info("waiting for another process that removes %s", backend.address(key))
            time.sleep(pause)
        elif backend.remove(layout.unreferenced_key(key), version):
            return backend.exists(key)
    raise StorageError(
        "another process is removing it", file=backend.address(key), advice="try again later"
    )


def note_unneeded(backend: Backend, key: str, now: float) -> None:
    """Mark an object as unneeded since `now`, unless it is marked already."""
    backend.create(layout.unreferenced_key(key), [Mark(now, removing=False).content()])


def is_due(backend: Backend, stored: Stored, before: float, now: float) -> bool:
    """Return whether `claim` would succeed. A damaged mark is replaced by a new one.

    A mark older than its object is damaged, too: a clock was wrong.
    """
    key = stored.key
    found = mark_of(backend, key, now)
    if found is None:
        return False
    if found[0] is None or found[0].since < stored.modified - record.CLOCKS_APART:
        # The grace period begins again.
        mark = Mark(now, removing=False).content()
        backend.replace(layout.unreferenced_key(key), mark, found[1])
        return False
    return _is_due(found[0], before, now)


def claim(backend: Backend, key: str, before: float, now: float) -> bool:
    """Reserve an object for removal if its mark is older than `before`. Return whether it was
    reserved.

    If it was, the caller must `remove` it.
    """
    found = mark_of(backend, key, now)
    if found is None or found[0] is None or not _is_due(found[0], before, now):
        return False
    claimed = Mark(now, removing=True).content()
    return backend.replace(layout.unreferenced_key(key), claimed, found[1])


def remove(backend: Backend, key: str, now: float) -> bool:
    """Remove an object that was claimed, and then its mark. Return whether they were removed.

    They are not if this process was suspended for so long that another one took it for dead.

    If the object cannot be removed, its mark no longer says that it is being removed: whoever needs
    it would wait.

    Args:
        now: the time of the claim.
    """
    mark = layout.unreferenced_key(key)
    try:
        return backend.discard(key, mark, Mark(now, removing=True).content())
    except BaseException:
        with contextlib.suppress(StorageError):
            backend.delete(mark)
        raise


def tidy(backend: Backend, key: str, now: float) -> None:
    """Remove the mark of an object that is needed or missing.

    A needed object has a mark if it got a name after a collector had read all names. A missing
    object has a mark if a process was killed in `remove`. If a needed object is being removed, its
    mark stays, because the collector relies on it.
    """
    found = mark_of(backend, key, now)
    if found is None:
        return
    mark, version = found
    if mark is None or not mark.removing or not backend.exists(key):
        backend.remove(layout.unreferenced_key(key), version)


def _is_due(mark: Mark, before: float, now: float) -> bool:
    if mark.removing:
        return now - mark.since >= _PATIENCE  # otherwise another process is removing it
    return mark.since <= before


def _parse(found: Found, now: float) -> Mark | None:
    try:
        fields = record.fields(found.content)
        if not isinstance(fields["removing"], bool):
            return None
        since = record.time_in(fields, "since", latest=now + record.CLOCKS_APART)
        return Mark(since, fields["removing"])
    except (ValueError, KeyError):
        return None
