"""Build a base model without its weights, to get the order and shapes of its modules."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from vbfmt._files import PathLike
from vbfmt._patterns import matcher
from vbfmt.converters.merge.base import json_object
from vbfmt.converters.names.rule import splits
from vbfmt.errors import MissingExtraError, SourceError, VbfmtError

MOST_LAYERS = 1024
MOST_EXPERTS = 65_536
"""Largest number of experts in all layers together."""

_PLAIN = re.compile(r"[\w.\-]*")

_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
"""PEFT's task types → transformers' Auto classes, as PEFT's own Auto classes map them."""


def class_for_task(config: Mapping[str, Any], task: object) -> str | None:
    """Return the name of transformers' class for a task of PEFT and a base's config, or None."""
    import transformers

    auto = getattr(transformers, _CLASSES.get(str(task), ""), None)
    kind = config.get("model_type")
    if auto is None or not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        return None
    found = auto._model_mapping.get(transformers.CONFIG_MAPPING[kind], None)
    return found.__name__ if isinstance(found, type) else None


def shapes_in_order(config: Mapping[str, Any], base: PathLike) -> dict[str, tuple[int, int]]:
    """Return (in_features, out_features) of the modules that PEFT adapts, by name.

    They are in the base's order.

    The base is built on PyTorch's meta device, and PEFT itself adds its layers to it.

    Args:
        config: the content of PEFT's ``adapter_config.json``.
        base: the base model's folder. Its config.json is read; no code in it is run.

    Raises:
        MissingExtraError: PEFT or transformers is not installed.
        SourceError: there is no config.json, or PEFT cannot build the adapter on this base.
        ConfigError: a pattern in the config is not a regular expression, or takes too long.
    """
    try:
        from peft import PeftConfig, get_peft_model
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        raise MissingExtraError.of("the modules' order needs PEFT", "peft") from None
    file = os.path.join(base, "config.json")
    if not os.path.isfile(file):
        raise SourceError("no base model", part="`base`", found=base, expected="a config.json")
    _require_few_layers(json_object(file), file)
    try:
        model = _model(config, os.fspath(base))
        settings = {key: value for key, value in config.items() if key != "auto_mapping"}
        settings |= _without_patterns(settings, [name for name, _ in model.named_modules() if name])
        peft_config: PeftConfig = PeftConfig.from_peft_type(**settings)  # type: ignore[no-untyped-call]
        adapted: Any = get_peft_model(model, peft_config, low_cpu_mem_usage=True)
    except VbfmtError:
        raise
    except Exception as error:  # noqa: BLE001 - a strange config can provoke anything
        # Shorten the path, which could fill the whole message.
        reason = str(error).replace(os.fspath(base), os.path.basename(os.path.normpath(base)))
        raise SourceError(
            "PEFT cannot build the adapter on this base",
            part="`base`",
            found=f"{type(error).__name__}: {reason[:100]}",
        ) from None
    result = {}
    for name, module in adapted.base_model.model.named_modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            result[name] = (int(layer.in_features), int(layer.out_features))
    return result


def _model(config: Mapping[str, Any], base: str) -> Any:
    """Return the base on PyTorch's meta device, with the class for the task in PEFT's config."""
    import torch
    import transformers

    model_config = transformers.AutoConfig.from_pretrained(
        base,
        trust_remote_code=False,  # without it, transformers asks whether to run the base's code
    )
    task = config.get("task_type")
    names = model_config.architectures
    own = getattr(transformers, names[0], None) if names else None
    build = getattr(transformers, _CLASSES.get(str(task), "AutoModel"))
    with torch.device("meta"):
        if task is None and own is not None:
            return own(model_config)
        return build.from_config(model_config)


def _without_patterns(settings: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the settings that are regular expressions, as lists of the names that they match.

    PEFT would match them with Python's own engine, for which a hostile pattern can take forever.

    Raises:
        ConfigError: a setting is not a regular expression, or takes too long.
        SourceError: the pattern matches no module, or cannot be replaced by a list, because PEFT
            compares listed names with the ends of modules' names and would also select other
            modules.
    """
    plain: dict[str, Any] = {}
    for key in ("target_modules", "exclude_modules"):
        pattern = settings.get(key)
        if not isinstance(pattern, str) or pattern == "all-linear":
            continue
        match = matcher(pattern)
        chosen = {name for name in names if match(name)}
        others = [n for n in names if n not in chosen and any(e in chosen for _, e in splits(n))]
        if not chosen and key == "target_modules":
            raise SourceError("no module of the base is a target", part=key, found=pattern)
        if others:
            raise SourceError(
                "the regular expression cannot be replaced by a list of names",
                part=key,
                found=f"{pattern!r} does not match {others[0]}",
                advice="name the modules in a list in adapter_config.json",
            )
        plain[key] = sorted(chosen)
    patterns = settings.get("layers_pattern") or []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str) or not _PLAIN.fullmatch(pattern):
            raise SourceError("not a plain module name", part="layers_pattern", found=str(pattern))
    return plain


def _require_few_layers(config: Mapping[str, Any], file: str) -> None:
    """Refuse a config with too many layers or experts, because building each takes time and
    memory."""
    levels = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    for level in levels:
        counts = {"layer": 1, "expert": 1}
        for key, value in level.items():
            for word in counts:
                if word in key and type(value) is int:
                    counts[word] = max(counts[word], value)
        if counts["layer"] > MOST_LAYERS or counts["layer"] * counts["expert"] > MOST_EXPERTS:
            raise SourceError(
                "too many layers",
                file=file,
                found=f"{counts['layer']} layers, {counts['expert']} experts in each",
                expected=f"at most {MOST_LAYERS}, and {MOST_EXPERTS} experts in all",
            )
