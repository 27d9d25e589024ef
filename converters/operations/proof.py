"""Compare a packed adapter with the checkpoint that it was packed from."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from vbfmt._files import PathLike
from vbfmt.adapter import Adapter
from vbfmt.analysis.difference import Difference, compare
from vbfmt.converters import open_source, sources
from vbfmt.converters.operations.pack import base_of, recorded

_ROUNDED_TWICE = 2.0**-23


@dataclass(frozen=True)
class Reference:
    """A checkpoint to compare with, packed again in memory.

    Attributes:
        adapter: the adapter in the checkpoint.
        rounded: whether the checkpoint is in PEFT's top-k form, which rounds admixture weights.
    """

    adapter: Adapter
    rounded: bool


@dataclass(frozen=True)
class Comparison:
    """The result of `against`.

    Attributes:
        difference: the differences between the adapter and the checkpoint.
        bound: the largest difference of an element of a factor that rounding in PEFT's top-k form
            can cause; 0 if the checkpoint is not in this form.
    """

    difference: Difference
    bound: float

    @property
    def same(self) -> bool:
        """Whether nothing differs, or only factors differ, by at most `bound`."""
        rest = self.difference
        factors_alone = not (rest.parts or rest.only_in_a or rest.only_in_b)
        shapes_agree = all(module.shapes is None for module in rest.modules)
        return rest.same or (factors_alone and shapes_agree and rest.largest <= self.bound)


def reference(
    src: PathLike,
    *,
    topk: int | None = None,
    layout: str | None = None,
    base: PathLike | None = None,
    base_model: str | None = None,
    revision: str | None = None,
) -> Reference:
    """Pack a checkpoint again, in memory. Arguments and errors are those of `vbfmt.pack`."""
    opened = open_source(sources.checkpoint(os.fspath(src), revision=revision), layout=layout)
    adapter = recorded(opened.read(topk=topk, base=base_of(opened, base)), base_model)
    rounded = any(key.endswith("_topk_weights") for key in opened.checkpoint.tensors)
    return Reference(adapter, rounded)


def against(adapter: Adapter, checkpoint: Reference) -> Comparison:
    """Compare an adapter with a checkpoint.

    In PEFT's top-k form, weights are rounded once more than when they are computed from logits. In
    both cases, the factors are within (k + 1)·2⁻²⁴·max|bank| of the exact values, so they may
    differ by twice this bound.
    """
    bound = 0.0
    if checkpoint.rounded:
        largest = float(np.abs(checkpoint.adapter.bank).max())
        bound = (checkpoint.adapter.k + 1) * _ROUNDED_TWICE * largest
    return Comparison(compare(adapter, checkpoint.adapter), bound)
