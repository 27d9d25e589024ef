"""Read the authors' checkpoints of their NLU experiments: a whole RoBERTa with its adapter.

The files are ``pytorch_model.bin`` and ``config.json``, as transformers 4.4 wrote them from the
modified model of leo-yangli/VB-LoRA. In that repository, ``NLU/vblora/vblora.py`` has the layer,
``NLU/NLU/src/transformers/models/roberta/modeling_roberta.py`` has the model that uses it, and
``NLU/NLU/examples/text-classification/run_glue.py`` trains the bank, the logits and every parameter
outside the encoder. In the published code (commit 2fa62a7), the DeBERTa models do not use the
layer. Checkpoints of any model that uses it are read in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from vbfmt._files import peft_layout
from vbfmt.adapter import Adapter
from vbfmt.converters import _tiled as tiled
from vbfmt.converters._files.checkpoint import (
    Checkpoint,
    agreed_k,
    bank_of,
    owned,
    require_gathered,
    size_in,
)
from vbfmt.errors import SourceError, few, in_file, warn
from vbfmt.module import Module
from vbfmt.tensors import Tensor

_CONFIG = "config.json"
_TRUNKS = ("roberta", "deberta")
_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
"""Suffixes of transformers' class names → PEFT's task types."""


def is_whole_model(keys: Collection[str]) -> bool:
    """Return whether every module with logits also has a copy of the bank.

    The authors' layer registers these copies.
    """
    owners = {match["module"] for key in keys if (match := tiled.LOGITS.match(key))}
    return bool(owners) and all(f"{owner}.vector_bank" in keys for owner in owners)


def from_checkpoint(checkpoint: Checkpoint, *, topk: int | None = None) -> Adapter:
    """Return the adapter and the trained head in a checkpoint, without the base's weights.

    Args:
        checkpoint: the opened checkpoint.
        topk: k, needed if there is no config.

    Warns:
        VbfmtWarning: how many tensors of the base were left out, and which head was kept.

    Raises:
        SourceError: the checkpoint has another layout or is incomplete, or copies of the bank
            differ.
        ContentError: a value breaks a rule.
    """
    config = checkpoint.config(_CONFIG) or {}
    with in_file(checkpoint.file):
        return _adapter(checkpoint.tensors, config, topk)


def _adapter(tensors: Mapping[str, Tensor], config: Mapping[str, Any], topk: int | None) -> Adapter:
    bank_key = _bank_key(tensors)
    trunk = bank_key.removesuffix("vector_bank")
    bank = bank_of(tensors[bank_key])
    modules = tiled.modules_of(tensors, bank, tiled.NLU)
    _require_tied(tensors, tensors[bank_key], modules)
    _require_config(config, modules, *bank.shape)
    k = agreed_k({"`topk`": topk, _CONFIG: _plain(config.get("topk"))})
    rows = tiled.rows_by_module(tensors, modules, k, len(bank), tiled.NLU)
    head = {key: owned(t) for key, t in tensors.items() if trunk and not key.startswith(trunk)}
    require_gathered(head)
    notice = _notice(tensors, head)
    if notice:
        warn(notice)
    name = config.get("_name_or_path")
    adapter = Adapter.from_rows(
        bank,
        rows,
        tensors=head,
        base_model=name if isinstance(name, str) and name else None,
    )
    kept = peft_layout.canonical(_peft_config(config, head), adapter)
    return dataclasses.replace(adapter, config=kept)


def _bank_key(tensors: Mapping[str, Tensor]) -> str:
    """Return the key of the bank that is not a module's copy.

    Raises:
        SourceError: there is no such bank, or more than one.
    """
    banks = [key for key in tensors if key == "vector_bank" or key.endswith(".vector_bank")]
    owners = {match["module"] for key in tensors if (match := tiled.LOGITS.match(key))}
    own = [key for key in banks if key.removesuffix(".vector_bank") not in owners]
    if len(own) != 1:
        raise SourceError(
            "not exactly one vector bank apart from the modules' copies",
            part="vector bank",
            found=few(own) or "none",
            expected=" or ".join(f"{trunk}.vector_bank" for trunk in _TRUNKS),
        )
    return own[0]


def _require_tied(
    tensors: Mapping[str, Tensor], bank: Tensor, modules: Mapping[str, Module]
) -> None:
    """Refuse copies of the bank that differ from it."""
    for name in modules:
        copy = tensors.get(f"{name}.vector_bank")
        if copy is not None and copy != bank:
            raise SourceError(
                "the module's copy of the vector bank is not the shared one",
                part=f"{name}.vector_bank",
                found=copy if copy.shape != bank.shape else "other values",
                expected="the tied copy that the authors' model saves",
                advice="the modules do not share one bank, so this cannot be packed",
            )


def _require_config(
    config: Mapping[str, Any], modules: Mapping[str, Module], h: int, b: int
) -> None:
    """Refuse a config that contradicts the tensors' shapes or the number of layers."""
    ranks = {module.rank for module in modules.values()}
    found = {"num_vectors": {h}, "vector_length": {b}, "rank": ranks}
    for key, sizes in found.items():
        configured = _plain(config.get(key))
        if configured is not None and list(sizes) != [size_in(_CONFIG, key, configured)]:
            raise SourceError(
                "the config contradicts the tensors",
                part=key,
                found=f"{configured} in {_CONFIG}",
                expected=", ".join(map(str, sorted(sizes))),
            )
    layers = config.get("num_hidden_layers")
    by_pattern: dict[str, int] = {}
    for name in modules:
        pattern = ".".join(part for part in name.split(".") if not part.isdigit())
        by_pattern[pattern] = by_pattern.get(pattern, 0) + 1
    short = {pattern: count for pattern, count in by_pattern.items() if count != layers}
    if isinstance(layers, int) and short:
        pattern, count = next(iter(short.items()))
        raise SourceError(
            "incomplete checkpoint", part=pattern, found=f"in {count} layers", expected=layers
        )


def _plain(value: object) -> object:
    """Return a value, or its only element if it is a list of one."""
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    return value


def _peft_config(config: Mapping[str, Any], head: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the fields that describe the trained head in a PEFT config."""
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else ""
    tasks = [task for end, task in _TASKS.items() if str(architecture).endswith(end)]
    return {
        "task_type": tasks[0] if tasks else None,
        "modules_to_save": sorted({key.partition(".")[0] for key in head}) or None,
    }


def _notice(tensors: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> str:
    """Return a sentence about the omitted tensors and the head, or "" if there are none."""
    base = [
        key
        for key in tensors
        if key not in head and not tiled.LOGITS.match(key) and not key.endswith("vector_bank")
    ]
    left = f"{len(base)} tensors of the base model were left out" if base else ""
    kept = f"the trained head ({', '.join(sorted(head)[:2])}, …) is kept" if head else ""
    return "; ".join(filter(None, (left, kept)))
