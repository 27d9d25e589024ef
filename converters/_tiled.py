"""Read logits of shape (features / b, r, h) for both factors, as the authors' code stores them.

A tile is one of the features / b positions at which a factor has a sub-vector. The authors' code
and the paper's Algorithm 1 use this shape. But they give the names A and B to different factors: in
one, A is the factor at the module's input; in the other, B is. For a square module, the shapes do
not show which convention was used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbfmt._math.admixture import Rows
from vbfmt.converters._files.checkpoint import FLOATS
from vbfmt.converters.peft.rows import rows_of_blocks, split
from vbfmt.errors import SourceError
from vbfmt.module import Module
from vbfmt.tensors import Tensor

LOGITS = re.compile(r"^(?P<module>.+)\.logits_(?P<name>[AB])$")
"""Matches the keys of logits."""


@dataclass(frozen=True)
class Layout:
    """A convention that gives the names A and B to the factors.

    Attributes:
        name: the convention's name, as in ``--layout``.
        at_input: name of the factor that is multiplied by the module's input.
        at_output: name of the other factor, whose result is added to the module's output.
    """

    name: str
    at_input: str
    at_output: str


NLU = Layout("nlu", "A", "B")
"""The authors' VBLinear: ``x @ A @ B`` (NLU/vblora/vblora.py of leo-yangli/VB-LoRA)."""

ALGORITHM_1 = Layout("algorithm1", "B", "A")
"""The paper's Algorithm 1: ``(x @ B) @ A``."""


def modules_of(
    tensors: Mapping[str, Tensor], bank: NDArray[np.float32], layout: Layout
) -> dict[str, Module]:
    """Return the adapted modules by name. Their sizes follow from the shapes of their logits.

    Args:
        tensors: the state dict.
        bank: the vector bank, (h, b).
        layout: which factor is at the input.

    Raises:
        SourceError: a module lacks a factor, shapes contradict each other or the bank, or a weight
            of the base in the state dict fits only the other layout.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if match := LOGITS.match(key):
            pairs.setdefault(match["module"], {})[match["name"]] = tensor
    if not pairs:
        raise SourceError("no logits", part="keys", expected="keys like ….logits_A and ….logits_B")
    return {
        name: _module(name, pair, tensors.get(f"{name}.weight"), bank, layout)
        for name, pair in pairs.items()
    }


def rows_by_module(
    tensors: Mapping[str, Tensor], modules: Mapping[str, Module], k: int, h: int, layout: Layout
) -> dict[Module, Rows]:
    """Return the selected indices and weights of every module, in the order of the packed format.

    Args:
        tensors: the state dict.
        modules: result of `modules_of`.
        k: number of vectors per sub-vector.
        h: number of vectors in the bank.
        layout: which factor is at the input.

    Raises:
        ContentError: NaN among the logits, or k is out of range.
    """
    sides = (layout.at_input, layout.at_output)
    keys = [f"{name}.logits_{side}" for name in modules for side in sides]
    blocks = {key: tensors[key].numpy().reshape(-1, h) for key in keys}
    shapes = {
        module: [tensors[f"{name}.logits_{side}"].shape[:2] for side in sides]
        for name, module in modules.items()
    }
    return split(rows_of_blocks(blocks, k, h), shapes)


def _module(
    name: str,
    pair: Mapping[str, Tensor],
    weight: Tensor | None,
    bank: NDArray[np.float32],
    layout: Layout,
) -> Module:
    h, b = bank.shape
    for side in "AB":
        tensor = pair.get(side)
        valid = tensor and tensor.dtype in FLOATS and len(tensor.shape) == 3
        if not tensor or not valid or tensor.shape[2] != h or 0 in tensor.shape:
            raise SourceError(
                "the logits do not fit the bank" if tensor else "incomplete checkpoint",
                part=f"{name}.logits_{side}",
                found=tensor or "nothing",
                expected=f"(features / {b}, rank, {h})",
            )
    (in_tiles, rank, _), (out_tiles, rank_out, _) = (
        pair[side].shape for side in (layout.at_input, layout.at_output)
    )
    if rank != rank_out:
        raise SourceError("ranks disagree", part=name, found=f"{rank} and {rank_out}")
    module = Module(name, in_tiles * b, out_tiles * b, rank)
    if weight is not None and weight.shape != (module.out_features, module.in_features):
        fits_other = weight.shape == (module.in_features, module.out_features)
        raise SourceError(
            f"the weight does not fit the logits, read in the layout {layout.name}",
            part=name,
            found=list(weight.shape),
            expected=[module.out_features, module.in_features],
            advice=f"the layout {_other(layout)} fits: `layout={_other(layout)}`"
            if fits_other
            else None,
        )
    return module


def _other(layout: Layout) -> str:
    return next(other.name for other in (NLU, ALGORITHM_1) if other != layout)
