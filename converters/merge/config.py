"""Change a base's ``config.json`` for the output of a merge: dtype, labels of a head, class."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from vbfmt._files import json_file, peft_layout
from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.merge.base import CONFIG

_DTYPE_KEYS = ("dtype", "torch_dtype")
_HEAD = re.compile(
    r"(^|\.)(classifier|score|classification_head|logits_proj)(\.out_proj)?\.(weight|bias)$"
)
_CLASSES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
"""PEFT's task type → suffix of the class names that transformers has for it."""
_CLASS = re.compile(
    r"(?P<stem>\w+?)(?<!Encoder)(LMHeadModel|Model|For(CausalLM|MaskedLM|PreTraining"
    r"|ConditionalGeneration|SequenceClassification|TokenClassification|QuestionAnswering))"
)


def changed(
    config: Mapping[str, Any], adapter: LowRank, dtype: str | None, added: Collection[str] = ()
) -> tuple[Mapping[str, Any], list[str]]:
    """Return the output's config, and notices for the user.

    If nothing changes, the returned config is `config` itself.

    Args:
        config: the base's config; empty if it has none.
        adapter: the adapter that is merged.
        dtype: the dtype to write (``bfloat16``); None to keep the base's dtypes.
        added: names of trained tensors that the base lacks.
    """
    if not config:
        return config, []
    result = with_dtype(config, dtype) if dtype else config
    notices = []
    count = trained_labels(adapter)
    if count is not None and count != labels(config):
        result = with_labels(result, count)
        notices.append(
            f"the trained head has {count} labels, but the base's config has {labels(config)}: "
            f"the output's config has {count} labels, without names"
        )
    if not added:
        return result, notices
    if count is None:
        notices.append(
            f"the base does not have {', '.join(added)}: check that the output's {CONFIG} is right"
        )
    return with_class(result, adapter, added, notices), notices


def with_class(
    config: Mapping[str, Any], adapter: LowRank, added: Collection[str], notices: list[str]
) -> Mapping[str, Any]:
    """Return the config with the model class that has the added head.

    If the name of that class cannot be derived from the old one, return the config unchanged, and
    append a sentence to `notices`.
    """
    before = config.get("architectures")
    name = before[0] if isinstance(before, list) and len(before) == 1 else None
    if not isinstance(name, str):
        return config
    suffix = _CLASSES.get(task_type(adapter) or _task_of(added) or "")
    match = _CLASS.fullmatch(name)
    if suffix and match:
        return {**config, "architectures": [match["stem"] + suffix]}
    if not suffix or not name.endswith(suffix):
        notices.append(
            f"{CONFIG} names {name}, which may not have {', '.join(added)}: "
            "load the output with the class that was trained"
        )
    return config


def _task_of(added: Collection[str]) -> str | None:
    """Return the task type that follows from the names of the added tensors, or None.

    Nothing follows from ``classifier``, because models for several tasks have one.
    """
    heads = {name.split(".")[0] for name in added}
    if heads & {"classification_head", "logits_proj"}:
        return "SEQ_CLS"
    return "QUESTION_ANS" if "qa_outputs" in heads else None


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the config with `dtype` (``bfloat16``) in every nested config that has a dtype."""
    result = {
        key: with_dtype(value, dtype) if isinstance(value, Mapping) else value
        for key, value in config.items()
    }
    result.update({key: dtype for key in _DTYPE_KEYS if isinstance(config.get(key), str)})
    return result


def with_labels(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return the config with `count` labels, under transformers' default names."""
    names = {index: f"LABEL_{index}" for index in range(count)}
    result = {
        **config,
        "id2label": {str(index): name for index, name in names.items()},
        "label2id": {name: index for index, name in names.items()},
    }
    result.pop("num_labels", None)
    return result


def labels(config: Mapping[str, Any]) -> int:
    """Return the number of labels in a config. The default is two, as in transformers."""
    named = config.get("id2label")
    if isinstance(named, Mapping):
        return len(named)
    count = config.get("num_labels")
    return count if isinstance(count, int) else 2


def trained_labels(adapter: LowRank) -> int | None:
    """Return the number of labels of the adapter's classifier, or None if it has no classifier.

    The head is recognized by its name and shape, because the task type is often missing.
    """
    counts = {
        tensor.shape[0]
        for name, tensor in adapter.tensors.items()
        if is_head(name) and len(tensor.shape) == 2
    }
    return counts.pop() if len(counts) == 1 else None


def task_type(adapter: LowRank) -> str | None:
    """Return PEFT's task type (``SEQ_CLS``) from the adapter's config, or None if it has none."""
    return peft_layout.config_of(adapter).get("task_type")


def is_head(name: str) -> bool:
    """Return whether a tensor is a classifier's last layer, according to transformers' names."""
    return bool(_HEAD.search(name))


def text(config: Mapping[str, Any]) -> bytes:
    """Return a config as the content of ``config.json``. The order of the keys is kept."""
    return json_file.encoded(json.dumps(config, indent=2, ensure_ascii=False))
