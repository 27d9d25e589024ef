"""Gather the rows of a batch's adapters from the pool's memory, in a frame's form.

The number of tensor operations does not depend on the numbers of samples, adapters and modules. All
positions are copied to the device in one transfer, because a GPU would wait for each transfer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vbfmt.torch.pool.frame import Frame
from vbfmt.torch.pool.layout import Layout
from vbfmt.torch.pool.pages import Pages
from vbfmt.torch.pool.residents import Resident


def gathered(
    frame: Frame, residents: Sequence[Resident | None], pages: Pages, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the indices (int32) and weights (float32) of all samples, flattened, in the frame's
    order.

    Args:
        residents: the adapter of each sample, not all None.
    """
    members = _by_layout(residents)
    starts, firsts, kinds = to_device(
        device, _starts(members, residents), _firsts(members, frame), _kinds(members, residents)
    )
    indices, weights = _table(members, firsts.int(), frame, pages)
    rows, parts = frame.maps([*members])
    row = rows.index_select(0, kinds)
    where = torch.where(row < 0, len(indices) - 1, row + starts[:, None])
    order = frame.cut(len(residents)).order
    where = where.view(-1).index_select(0, order)
    indices = indices.index_select(0, where)
    if any(layout.b != frame.length for layout in members):
        indices += parts.index_select(0, kinds).view(-1).index_select(0, order)[:, None]
    return indices.view(-1), weights.index_select(0, where).view(-1)


def to_device(device: torch.device, *lists: Sequence[int]) -> list[Tensor]:
    """Copy lists of integers to a device in one asynchronous transfer, as (n,) int64 each."""
    numbers: NDArray[np.int64] = np.concatenate([np.asarray(each, np.int64) for each in lists])
    tensor = torch.from_numpy(numbers)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    sent = tensor.to(device, non_blocking=True)
    return list(sent.split_with_sizes([len(each) for each in lists]))


Members = Mapping[Layout, Sequence[Resident]]
"""The different adapters of a batch, by their layout."""


def _by_layout(residents: Sequence[Resident | None]) -> Members:
    members: dict[Layout, list[Resident]] = {}
    for resident in dict.fromkeys(residents):
        if resident is not None:
            members.setdefault(resident.layout, []).append(resident)
    return members


def _starts(members: Members, residents: Sequence[Resident | None]) -> list[int]:
    """Return where the rows of each sample's adapter begin in the result of `_table`."""
    starts: dict[Resident | None, int] = {None: 0}
    start = 0
    for layout, same in members.items():
        for resident in same:
            starts[resident] = start
            start += layout.N
    return [starts[resident] for resident in residents]


def _firsts(members: Members, frame: Frame) -> list[int]:
    """Return the position of the first vector of each adapter's bank, in vectors of length g."""
    return [each.bank.start // frame.length for same in members.values() for each in same]


def _kinds(members: Members, residents: Sequence[Resident | None]) -> list[int]:
    """Return the index of each sample's layout. Samples without an adapter have the last index."""
    kinds = {layout: kind for kind, layout in enumerate(members)}
    return [len(members) if each is None else kinds[each.layout] for each in residents]


def _table(members: Members, firsts: Tensor, frame: Frame, pages: Pages) -> tuple[Tensor, Tensor]:
    """Return all rows of these adapters and, last, one row with weight zero.

    Returns:
        indices into the memory of all banks, and weights, (rows, k) each.
    """
    indices, weights, known = [], [], 0
    for layout, same in members.items():
        views = [view for each in same for view in pages.read(each.runs, layout.nbytes)]
        found, shares = layout.unpack(torch.cat(views).view(len(same), layout.nbytes))
        first = firsts[known : known + len(same), None, None]
        known += len(same)
        more = (0, frame.k - layout.k)
        found = found * (layout.b // frame.length) + first
        indices.append(nn.functional.pad(found, more).view(-1, frame.k))
        weights.append(nn.functional.pad(shares, more).view(-1, frame.k))
    zero = torch.zeros(1, frame.k, device=firsts.device)
    return torch.cat([*indices, zero.int()]), torch.cat([*weights, zero])
