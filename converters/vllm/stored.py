"""Find adapters by name in a store (`vbfmt.store`)."""

from __future__ import annotations

import os

from vbfmt._files import PathLike
from vbfmt.converters.vllm.pinned import Pinned
from vbfmt.store import Store


class Stored:
    """The named adapters of a store. Digests are not accepted as names.

    Adapters need no lease against garbage collection. A worker reads an adapter immediately and
    keeps it in memory, and the store keeps an adapter for a day after its name was changed.

    Raises:
        StoreError: there is no store at this path.
    """

    def __init__(self, path: PathLike) -> None:
        self._store = Store(path)
        self.banks = self._store

    def find(self, name: str) -> str | None:
        """Return the path with digest of the adapter with this name, or None if there is none.

        Raises:
            VbfmtError: the name's record is damaged, or the adapter is not in the store.
        """
        digest = self._store.find(name)
        if digest is None:
            return None
        return str(Pinned(os.path.abspath(self._store.path(digest)), digest))
