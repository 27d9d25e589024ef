"""Check a `LazyAdamW` state from a file. Wrong indices would silently train other logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vbfmt.errors import ContentError

OF_ENTRIES = ("mean", "square", "count")
"""Names of the tensors that have a value for each index in ``entries``."""


def require(state: Mapping[str, Any], parameter: nn.Parameter, sparse: bool, index: object) -> None:
    """Refuse a state that cannot belong to this parameter.

    Args:
        state: the saved state of one parameter; empty if it has none.
        parameter: the parameter that it is loaded for.
        sparse: whether the parameter's group is sparse.
        index: the parameter's number, for messages.

    Raises:
        ContentError: the state does not fit, or is damaged.
    """
    if state and ("entries" in state) != sparse:
        found, expected = ("sparse", "dense") if "entries" in state else ("dense", "sparse")
        raise _error(index, f"the state of a {found} parameter", f"of a {expected} one")
    if state and sparse:
        _require_entries(state["entries"], parameter, index)
        for name in OF_ENTRIES:
            _require_values(name, state.get(name), len(state["entries"]), index)


def _require_entries(entries: object, parameter: nn.Parameter, index: object) -> None:
    expected = f"ascending indices below {parameter.numel()}"
    if not isinstance(entries, Tensor):
        raise _error(index, type(entries).__name__, expected)
    if entries.dtype != torch.int64 or entries.dim() != 1:
        raise _error(index, f"{entries.dtype}, {list(entries.shape)}", expected)
    if not len(entries):
        return
    least, most = int(entries[0]), int(entries[-1])
    if least < 0 or most >= parameter.numel() or not bool((entries.diff() > 0).all()):
        raise _error(index, f"{least} to {most}, or not ascending", expected)


def _require_values(name: str, values: object, count: int, index: object) -> None:
    """Refuse values that updates cannot produce. Each entry was updated at least once."""
    if not isinstance(values, Tensor) or values.shape != (count,):
        found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise _error(index, f"{name}: {found}", f"{name}: [{count}]")
    least = {"mean": -float("inf"), "square": 0.0, "count": 1.0}[name]
    good = values.is_floating_point() and bool(((values >= least) | values.isnan()).all())
    if not good or (name == "count" and not bool(values.isfinite().all())):
        raise _error(index, f"{name}: other values", f"{name}: numbers from {least:g}")


def _error(index: object, found: str, expected: str) -> ContentError:
    return ContentError(
        "the optimizer's state is damaged or of other parameters",
        part=f"parameter {index}",
        found=found,
        expected=expected,
    )
