"""TopK of Eq. 3.3 on tensors: which k vectors of the bank each sub-vector selects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 64
_WORTH_CHUNKS = 512  # logits in a row; below, one pass of topk is faster than two stages


def select_top_k(blocks: Sequence[Tensor], k: int) -> Tensor:
    """Indices (N, k) int64 of the k largest logits of each row of all blocks, descending.

    Args:
        blocks: logits (n, h) each. NaN counts as the largest, as in `torch.topk`; among equal
            logits the choice is undefined.
        k: 1 ≤ k ≤ h.
    """
    h = blocks[0].shape[1]
    with torch.no_grad():
        if blocks[0].device.type == "cpu" and _WORTH_CHUNKS <= h and k <= h // _CHUNK // 4:
            return _in_two_stages([block.detach() for block in blocks], k)
        return torch.cat([block.detach().topk(k, dim=1).indices for block in blocks])


def _in_two_stages(blocks: Sequence[Tensor], k: int) -> Tensor:
    """The same by the maxima of chunks first, which processors find in vector registers.

    The k largest of a row lie in the k chunks with the largest maxima. What remains of a row
    whose length is no multiple of the chunk's stands beside them as a chunk of its own.
    """
    h = blocks[0].shape[1]
    chunks, rest = divmod(h, _CHUNK)
    whole = chunks * _CHUNK
    inner = [block[:, :whole].unflatten(1, (chunks, _CHUNK)) for block in blocks]
    maxima = torch.cat([part.amax(2) for part in inner])
    best = maxima.topk(k, dim=1, sorted=False).indices
    candidates = torch.cat(
        [_take(part, at) for part, at in zip(inner, best.split([len(p) for p in inner]), strict=True)]
    )
    if rest:
        tail = torch.cat([block[:, whole:] for block in blocks])
        candidates = torch.cat([candidates, tail], dim=1)
    found = candidates.topk(k, dim=1).indices
    chosen = best.gather(1, (found // _CHUNK).clamp(max=k - 1)) * _CHUNK + found % _CHUNK
    return torch.where(found < k * _CHUNK, chosen, found - k * _CHUNK + whole) if rest else chosen


def _take(part: Tensor, chunks: Tensor) -> Tensor:
    """The named chunks (n, k) of every row of (n, chunks, length): (n, k · length)."""
    n, count, length = part.shape
    starts = torch.arange(0, n * count, count, device=part.device)
    rows = (chunks + starts[:, None]).flatten()
    return part.reshape(n * count, length).index_select(0, rows).view(n, -1)
