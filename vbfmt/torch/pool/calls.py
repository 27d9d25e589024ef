"""Which layers the model calls, and whether it calls them for a batch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vbfmt.errors import ModelError, few, warn
from vbfmt.torch.pool.batch import Batch
from vbfmt.torch.pool.names import is_routed


class Calls:
    """The calls of a pool's layers. Compiled layers do not record calls.

    Args:
        names: names of the layers, in the order of a batch's `parts`.

    Attributes:
        layers: indices of the layers that batches have called.
        outside: number of calls of a layer in threads that were running no batch.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.layers: set[int] = set()
        self.outside = 0
        self._names = names
        self._warned: set[int] = set()

    def check(self, batch: Batch, outside: int) -> None:
        """Check, at the end of a batch, that the model has run it.

        Args:
            outside: `outside` as it was when the batch began.

        Warns:
            VbfmtWarning: the model has never called a layer that the batch changes. Each layer is
                named once. Some models read a layer's weight instead of calling it. An adapter then
                has an effect there only if it is merged.

        Raises:
            ModelError: the model has run, but only in threads without the batch.
        """
        dynamo = sys.modules.get("torch._dynamo.utils")
        if dynamo and dynamo.counters["frames"]:
            return
        changed = {index for index, part in enumerate(batch.parts) if part is not None}
        if changed and not batch.used and self.outside > outside:
            raise ModelError(
                "the model ran in a different thread from the batch, so without its adapters",
                advice="enter `forward` in the thread that runs the model, or call the pool's "
                "`generate` there",
            )
        if not self.layers:
            return
        dead = changed - self.layers - self._warned
        self._warned |= dead
        # A router may choose other experts later.
        names = [self._names[i] for i in sorted(dead) if not is_routed(self._names[i])]
        if names:
            warn(f"{few(names)}: these layers were not called, so adapters have no effect there")
