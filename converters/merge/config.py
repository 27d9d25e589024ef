"""What a merge has to change in a base's ``config.json``: the dtype, and the labels of a head."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from vbfmt.converters.combine import LowRank

_DTYPE_KEYS = ("dtype", "torch_dtype")
_HEAD = re.compile(r"(^|\.)(classifier|score)(\.out_proj)?\.(weight|bias)$")


def changed(
    config: Mapping[str, Any], adapter: LowRank, dtype: str | None
) -> tuple[Mapping[str, Any], str | None]:
    """The output's config (the same one if nothing changes), and what to tell of new labels."""
    if not config:
        return config, None
    result = with_dtype(config, dtype) if dtype else config
    count = trained_labels(adapter)
    if count is None or count == labels(config):
        return result, None
    return with_labels(result, count), (
        f"the trained head has {count} labels, the base's config {labels(config)}: the output's "
        f"has {count}, without names"
    )


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config naming `dtype` (``bfloat16``), at every level at which it names one."""
    result = {
        key: with_dtype(value, dtype) if isinstance(value, Mapping) else value
        for key, value in config.items()
    }
    result.update({key: dtype for key in _DTYPE_KEYS if isinstance(config.get(key), str)})
    return result


def with_labels(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The config with as many labels, named as transformers names those without a name."""
    names = {index: f"LABEL_{index}" for index in range(count)}
    result = {
        **config,
        "id2label": {str(index): name for index, name in names.items()},
        "label2id": {name: index for index, name in names.items()},
    }
    result.pop("num_labels", None)
    return result


def labels(config: Mapping[str, Any]) -> int:
    """How many labels a config gives a classifier: transformers' default is two."""
    named = config.get("id2label")
    if isinstance(named, Mapping):
        return len(named)
    count = config.get("num_labels")
    return count if isinstance(count, int) else 2


def trained_labels(adapter: LowRank) -> int | None:
    """How many labels the classifier has that the adapter brings; None if it brings none."""
    if task_type(adapter) not in ("SEQ_CLS", "TOKEN_CLS"):
        return None
    counts = {
        tensor.shape[0]
        for name, tensor in adapter.tensors.items()
        if is_head(name) and len(tensor.shape) == 2
    }
    return counts.pop() if len(counts) == 1 else None


def task_type(adapter: LowRank) -> str | None:
    """What the adapter was trained for, in PEFT's words (``SEQ_CLS``), if it says so."""
    about = json.loads(adapter.config) if adapter.config else {}
    return about.get("task_type") if isinstance(about, dict) else None


def is_head(name: str) -> bool:
    """Whether a tensor is the last layer of a classifier, by transformers' names for it."""
    return bool(_HEAD.search(name))


def text(config: Mapping[str, Any]) -> bytes:
    """The file's content, in the order of the original."""
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(
        errors="backslashreplace"  # half a surrogate pair: JSON's own escape
    )
