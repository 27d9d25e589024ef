"""Logits whose first dimension is the tile in both factors: (features / b, r, h).

The authors' own code and the paper's Algorithm 1 store logits in this way. They differ only in
which of the names A and B is the factor at the module's input. The shapes of a square module do
not show which of the two it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vbfmt._math.admixture import Rows
from vbfmt.converters._files.checkpoint import FLOATS
from vbfmt.converters.peft.rows import joined, rows_of_blocks, swap
from vbfmt.errors import SourceError
from vbfmt.module import Module
from vbfmt.tensors import Tensor

LOGITS = re.compile(r"^(?P<module>.+)\.logits_(?P<name>[AB])$")
"""Matches keys of logits."""


@dataclass(frozen=True)
class Layout:
    """The convention for which of the names A and B is the factor at the module's input.

    Attributes:
        name: the layout's name, as in ``--layout``.
        at_input: name of the factor at the input.
        at_output: name of the factor at the output.
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
    """Return the adapted modules by name, with the sizes that the shapes of their logits show.

    Args:
        tensors: the state dict.
        bank: the vector bank, (h, b).
        layout: which factor is at the input.

    Raises:
        SourceError: a module lacks a factor, shapes contradict each other or the bank, or the
            base's weight in the state dict fits only the other layout.
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
    """Return the canonical rows of every module, A's and then B's, in the order of Eq. 3.2.

    Args:
        tensors: the state dict.
        modules: result of `modules_of`.
        k: number of vectors that a sub-vector selects.
        h: number of vectors in the bank.
        layout: which factor is at the input.

    Raises:
        ContentError: NaN among the logits, or k is out of range.
    """
    sides = (layout.at_input, layout.at_output)
    keys = [f"{name}.logits_{side}" for name in modules for side in sides]
    blocks = {key: tensors[key].numpy().reshape(-1, h) for key in keys}
    rows = rows_of_blocks(blocks, k, h)
    result: dict[Module, Rows] = {}
    start = 0
    for name, module in modules.items():
        pair = []
        for side in sides:
            tiles, rank = tensors[f"{name}.logits_{side}"].shape[:2]
            here = slice(start, start + tiles * rank)
            pair.append(
                Rows(
                    swap(rows.indices[here], tiles, rank),
                    swap(rows.weights[here], tiles, rank),
                )
            )
            start = here.stop
        result[module] = joined(*pair)
    return result


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
                "not logits of this bank" if tensor else "incomplete checkpoint",
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
