"""Forward hooks that add a batch's changes to the outputs of layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vbfmt.errors import ModelError
from vbfmt.torch.pool.batch import Batch, Part
from vbfmt.torch.pool.calls import Calls
from vbfmt.torch.pool.names import is_feed_forward, is_routed
from vbfmt.torch.pool.own_tensors import with_own_biases, with_own_weights
from vbfmt.torch.pool.running import running
from vbfmt.torch.pool.update import low_rank_update

NO_POOL = 0
"""The key of a hook that belongs to no pool."""


class LayerHook:
    """A forward hook that adds the running batch's change to a layer's output.

    All layers that may ever be changed get a hook when the pool is created, because code that
    `torch.compile` has compiled does not see later hooks.

    Attributes:
        pool: key of the pool.
        name: name of the layer, for messages.
        index: index of the layer in a batch's `parts`.
        calls: the calls of all layers of a pool.
        routed: whether the layer is an expert. Its input may have one row per sample by chance, but
            the rows are not the samples.
        of_media: whether the input's rows are images or sounds, of which a sample may have several.
    """

    def __init__(
        self, pool: int, name: str, index: int, calls: Calls, *, of_media: bool = False
    ) -> None:
        self.pool = pool
        self.name = name
        self.index = index
        self.calls = calls
        self.routed = is_routed(name)
        self.of_media = of_media

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Return the output with the batch's change, or None for no change."""
        batch = running.batches.get(self.pool)
        compiling = torch.compiler.is_compiling()
        if batch is None or batch.ended:
            if not compiling:
                self.calls.outside += 1
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        usual = False
        if not compiling:
            self.calls.layers.add(self.index)
            usual = batch.see(x, output) and not self.of_media
        part = batch.parts[self.index]
        if part is None:
            return None
        if usual:
            return _with_changes(part, module, x, output)
        self._require_rows(batch, x, output)
        return _changed(batch, part, module, x, output)

    def _require_rows(self, batch: Batch, x: Any, output: Any) -> None:
        tensors = isinstance(x, Tensor) and isinstance(output, Tensor)
        if not tensors or x.is_nested or x.dim() < 2 or x.shape[:-1] != output.shape[:-1]:
            raise ModelError(
                "samples cannot have different adapters in a layer that does not map samples to "
                "samples",
                part=self.name,
                found=tuple(x.shape) if tensors and not x.is_nested else type(x).__name__,
                expected="(samples, …, in_features)",
            )
        flat = x.dim() == 2
        if self.of_media or (flat and self.routed):
            if batch.samples == 1 and (self.of_media or batch.positions):
                return  # all rows belong to the only sample
            what = (
                "a layer of images or sounds, of which a sample may have any number"
                if self.of_media
                else "an expert, which gets the positions that a router has chosen"
            )
            raise ModelError(
                f"samples cannot have different adapters in {what}",
                part=self.name,
                advice="run batches of one sample, or load such adapters with load_packed",
            )
        rows = (batch.samples, batch.samples * batch.copies)
        if x.shape[0] not in rows and not (
            flat and x.shape[0] == batch.positions and is_feed_forward(self.name)
        ):
            raise ModelError(
                "the numbers of samples and of adapter names differ",
                part=self.name,
                found=f"{x.shape[0]} rows at this layer",
                expected=batch.samples * batch.copies,
                advice="name an adapter, or None, for every sample",
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Make copies and pickles belong to no pool, because a pool serves only its own model."""
        return LayerHook, (NO_POOL, self.name, self.index, Calls([]))


def _changed(batch: Batch, part: Part, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
    """Return the output with the batch's change.

    For the computation, a sample's copies and positions become one dimension.
    """
    positions = output.shape[:-1].numel() // batch.samples
    inputs = x.reshape(batch.samples, positions, x.shape[-1])
    result = output.reshape(batch.samples, positions, output.shape[-1])
    return _with_changes(part, module, inputs, result).view(output.shape)


def _with_changes(part: Part, module: nn.Module, inputs: Tensor, result: Tensor) -> Tensor:
    """Return (samples, positions, out_features) with the changes of a part."""
    if part.own is not None:
        bias = getattr(module, "bias", None)
        result = with_own_weights(inputs, part.own, bias, result)
    for rows in part.rows:
        if rows.samples is None:
            result = low_rank_update(inputs, rows, result)
        else:
            some = result.index_select(0, rows.samples)
            some = low_rank_update(inputs.index_select(0, rows.samples), rows, some)
            result = result.index_copy(0, rows.samples, some)
    if part.own is not None:
        result = with_own_biases(part.own, result)
    return result
