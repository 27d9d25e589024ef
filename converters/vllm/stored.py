"""Adapters by name in a store (`vbfmt.store`)."""

from __future__ import annotations

import os

from vbfmt.converters.vllm.pinned import Pinned
from vbfmt.store import Store

PathLike = str | os.PathLike[str]


class Stored:
    """The adapters that a store has names for; digests are no names.

    Nothing is leased: a worker reads an adapter at once and keeps it, and what a name has pointed
    to stays in the store for a day.

    Raises:
        StoreError: there is no store.
    """

    def __init__(self, path: PathLike) -> None:
        self._store = Store(path)
        self.banks = self._store

    def find(self, name: str) -> str | None:
        """Return the adapter of that name as a path with its digest, None if there is none.

        Raises:
            VbfmtError: the name's record is damaged, or the adapter is gone.
        """
        digest = self._store.find(name)
        if digest is None:
            return None
        return str(Pinned(os.path.abspath(self._store.path(digest)), digest))
