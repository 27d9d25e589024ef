"""Select the k largest logits of each sub-vector: TopK of the paper's Eq. 3.3."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

_CHUNK = 64
_WORTH_CHUNKS = 512  # logits in a row; for fewer, one call of topk is faster than two stages


def select_top_k(blocks: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Return indices (N, k) int64 of the k largest logits of every row, in descending order, and
    these logits (N, k), without a gradient.

    Args:
        blocks: logits (n, h) each. NaN counts as the largest, as in `torch.topk`. Among equal
            logits, the choice is undefined.
        k: 1 ≤ k ≤ h.
    """
    h = blocks[0].shape[1]
    in_chunks = h >= _WORTH_CHUNKS and h % _CHUNK == 0 and k <= h // _CHUNK // 4
    with torch.no_grad():
        if blocks[0].device.type == "cpu" and in_chunks:
            return _in_two_stages(blocks, k)
        found = [block.topk(k, dim=1) for block in blocks]
        return torch.cat([at for _, at in found]), torch.cat([values for values, _ in found])


def _in_two_stages(blocks: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Select in two stages.

    The k largest logits of a row are in the k chunks with the largest maxima, which CPUs find with
    vector instructions.
    """
    count = blocks[0].shape[1] // _CHUNK
    chunked = [block.view(-1, _CHUNK) for block in blocks]
    maxima = torch.cat([chunks.amax(1) for chunks in chunked]).view(-1, count)
    two = k == 2 and not torch.compiler.is_compiling()
    best = _two_largest(maxima) if two else maxima.topk(k, dim=1, sorted=False).indices
    # Positions of the selected chunks in those of their block.
    rows = torch.arange(0, max(len(chunks) for chunks in chunked), count)
    starts = torch.cat([rows[: len(block)] for block in blocks])
    chosen = torch.split((starts[:, None] + best).flatten(), [len(block) * k for block in blocks])
    candidates = torch.cat(
        [chunks.index_select(0, at) for chunks, at in zip(chunked, chosen, strict=True)]
    )
    top, found = candidates.view(-1, k * _CHUNK).topk(k, dim=1)
    at = found // _CHUNK
    return torch.add(found, best.gather(1, at) - at, alpha=_CHUNK), top


def _two_largest(values: Tensor) -> Tensor:
    """Return what `topk` returns for k = 2 (except for ties), in a third of the time."""
    first = values.max(1, keepdim=True).indices
    largest, second = values.scatter(1, first, -inf).max(1, keepdim=True)
    if not float(largest.min()) > -inf:  # then `second` may be `first`; or NaN hides −∞
        return values.topk(2, dim=1, sorted=False).indices
    return torch.cat([first, second], dim=1)
