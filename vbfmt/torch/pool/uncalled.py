"""Layers that a model never calls."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vbfmt.errors import few, warn
from vbfmt.torch.pool.batch import Batch
from vbfmt.torch.pool.names import is_routed


class Uncalled:
    """Warns once about each layer of a batch that the model has not called.

    Some models read a layer's weight instead of calling it. An adapter then has an effect there
    only if it is merged.

    Args:
        names: names of the layers, in the order of a batch's `parts`.

    Attributes:
        called: indices of the layers that batches have called. Compiled layers do not record calls.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.called: set[int] = set()
        self._names = names
        self._done: set[int] = set()

    def warn(self, batch: Batch) -> None:
        """Warn about the layers that a batch has changed, and that were not called until now."""
        dynamo = sys.modules.get("torch._dynamo.utils")
        if not self.called or (dynamo and dynamo.counters["frames"]):
            return
        changed = {index for index, part in enumerate(batch.parts) if part is not None}
        dead = changed - self.called - self._done
        self._done |= dead
        # A router may choose other experts later.
        names = [self._names[i] for i in sorted(dead) if not is_routed(self._names[i])]
        if names:
            warn(f"{few(names)}: these layers were not called, so adapters have no effect there")
