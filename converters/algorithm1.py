"""Read checkpoints of code that follows the paper's Algorithm 1.

The checkpoint is a plain state dict. It has one ``vector_bank`` (h, b), and for every module
``logits_A`` and ``logits_B`` of shape (features / b, r, h). B is applied first: ``x @ W + (x @ B) @
A``.
"""

from __future__ import annotations

import re

from vbfmt.adapter import Adapter
from vbfmt.converters import _tiled as tiled
from vbfmt.converters._files.checkpoint import Checkpoint, agreed_k, bank_of
from vbfmt.errors import SourceError, few, in_file, warn

_BANK = re.compile(r"^(?:.*\.)?vector_bank$")


def from_checkpoint(checkpoint: Checkpoint, *, topk: int | None = None) -> Adapter:
    """Return the adapter in a state dict with this layout, without other tensors.

    Args:
        checkpoint: the opened checkpoint.
        topk: k, which must be given, because the checkpoint does not contain it.

    Warns:
        VbfmtWarning: other tensors were left out.

    Raises:
        SourceError: the checkpoint does not have this layout or is incomplete, or k is not given.
        ContentError: a value breaks a rule.
    """
    tensors = checkpoint.tensors
    with in_file(checkpoint.file):
        banks = [key for key in tensors if _BANK.match(key)]
        if len(banks) != 1:
            raise SourceError(
                "not exactly one vector bank",
                found=few(banks) or "none",
                expected="vector_bank",
            )
        bank = bank_of(tensors[banks[0]])
        k = agreed_k({"`topk`": topk})
        modules = tiled.modules_of(tensors, bank, tiled.ALGORITHM_1)
        rows = tiled.rows_by_module(tensors, modules, k, len(bank), tiled.ALGORITHM_1)
        others = [key for key in tensors if key != banks[0] and not tiled.LOGITS.match(key)]
        if others:
            warn(f"{len(others)} other tensors ({few(others)}) were left out")
        return Adapter.from_rows(bank, rows)
