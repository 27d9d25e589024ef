"""What a layer's name shows about the rows of its input, which need not be samples."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

_ROUTED = re.compile(r"(?:^|\.)experts\.")
_FEED_FORWARD = re.compile(
    r"(?:^|\.)(?:mlp|ffn|feed_forward|fc\d?|moe|block_sparse_moe|shared_experts?)(?:\.|$)"
)
_LANGUAGE_MODEL = re.compile(r"(?:^|\.)(?:language_model|text_model)\.")
_OF_TEXT = re.compile(rf"{_LANGUAGE_MODEL.pattern}|^(?:model\.)?decoder\.|(?:^|\.)lm_head(?:\.|$)")
_MEDIA = re.compile(r"(?:^|\.)\w*(?:vision|visual|image|video|audio)\w*\.")


def is_routed(name: str) -> bool:
    """Return whether a layer is an expert, which gets the positions that a router has chosen, in
    the router's order."""
    return _ROUTED.search(name) is not None


def is_feed_forward(name: str) -> bool:
    """Return whether models apply a layer to each position alone, so that samples and positions may
    be one dimension. (A table of positions may have as many rows by chance.)"""
    return _FEED_FORWARD.search(name) is not None


def media_layers(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Return the layers that get images or sounds, of which a sample of a language model may have
    any number."""
    can_generate = getattr(model, "can_generate", None)
    if not callable(can_generate) or not can_generate():
        return set()
    names = list(names)
    if any(_LANGUAGE_MODEL.search(name) for name in names):
        return {name for name in names if not _OF_TEXT.search(name)}
    return {name for name in names if _MEDIA.search(name)}
