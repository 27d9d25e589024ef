"""Select the k largest logits of each sub-vector: TopK of the paper's Eq. 3.3."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

_CHUNK = 64
_WORTH_CHUNKS = 512  # logits in a row; for fewer, one call of topk is faster than two stages


def select_top_k(blocks: Sequence[Tensor], k: int) -> Tensor:
    """Return indices (N, k) int64 of the k largest logits of every row, in descending order.

    Args:
        blocks: logits (n, h) each. NaN counts as the largest, as in `torch.topk`. Among equal
            logits, the choice is undefined.
        k: 1 ≤ k ≤ h.
    """
    h = blocks[0].shape[1]
    in_chunks = h >= _WORTH_CHUNKS and h % _CHUNK == 0 and k <= h // _CHUNK // 4
    with torch.no_grad():
        if blocks[0].device.type == "cpu" and in_chunks:
            return _in_two_stages([block.detach() for block in blocks], k)
        return torch.cat([block.detach().topk(k, dim=1).indices for block in blocks])


def _in_two_stages(blocks: Sequence[Tensor], k: int) -> Tensor:
    """Select in two stages.

    The k largest logits of a row are in the k chunks with the largest maxima, which CPUs find with
    vector instructions.
    """
    chunked = [block.view(len(block), -1, _CHUNK) for block in blocks]
    maxima = torch.cat([block.amax(2) for block in chunked])
    two = k == 2 and not torch.compiler.is_compiling()
    best = _two_largest(maxima) if two else maxima.topk(k, dim=1, sorted=False).indices
    parts = torch.split(best, [len(block) for block in blocks])
    candidates = torch.cat([_take(block, at) for block, at in zip(chunked, parts, strict=True)])
    found = candidates.topk(k, dim=1).indices
    return best.gather(1, found // _CHUNK) * _CHUNK + found % _CHUNK


def _two_largest(values: Tensor) -> Tensor:
    """Return what `topk` returns for k = 2 (except for ties), in a third of the time."""
    first = values.max(1, keepdim=True).indices
    second = values.scatter(1, first, -inf).max(1, keepdim=True).indices
    if bool((first == second).any()):  # all others are −∞
        return values.topk(2, dim=1, sorted=False).indices
    return torch.cat([first, second], dim=1)


def _take(part: Tensor, chunks: Tensor) -> Tensor:
    """Return the selected chunks of every row, joined: (n, k · length).

    Args:
        part: (n, number of chunks, length).
        chunks: indices of chunks, (n, k).
    """
    n, count, length = part.shape
    starts = torch.arange(0, n * count, count, device=part.device)
    rows = (chunks + starts[:, None]).flatten()
    return part.view(n * count, length).index_select(0, rows).view(n, -1)
