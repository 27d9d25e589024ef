"""The authors' checkpoints of their NLU experiments: a whole RoBERTa with its adapter.

``pytorch_model.bin`` and ``config.json`` as transformers 4.4 wrote them from the modified model of
leo-yangli/VB-LoRA: ``NLU/vblora/vblora.py`` (the layer), ``NLU/NLU/src/transformers/models/roberta/
modeling_roberta.py`` (where it stands), ``NLU/NLU/examples/text-classification/run_glue.py`` (what
is trained: bank, logits, and every parameter outside of the encoder). In the published code (commit
2fa62a7) their DeBERTa models have no such layer; any model that has, with the bank in its trunk, is
read the same way.
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
    require_gathered,
    size_in,
)
from vbfmt.errors import SourceError, VbfmtError, warn
from vbfmt.module import Module
from vbfmt.tensors import Tensor

_CONFIG = "config.json"
_TRUNKS = ("roberta", "deberta")
_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
"""Endings of transformers' class names → PEFT's task types."""


def is_whole_model(keys: Collection[str]) -> bool:
    """Whether every module that has logits also has its copy of the bank, as the authors' layer
    registers it."""
    owners = {match["module"] for key in keys if (match := tiled.LOGITS.match(key))}
    return bool(owners) and all(f"{owner}.vector_bank" in keys for owner in owners)


def from_checkpoint(checkpoint: Checkpoint, *, topk: int | None = None) -> Adapter:
    """The adapter and the trained head of such a checkpoint, without the base's weights.

    Args:
        topk: k, if the config is lost.

    Raises:
        SourceError: not such a checkpoint, incomplete, or copies of the bank that differ.
        ContentError: its values cannot make an adapter.
    """
    config = checkpoint.config(_CONFIG) or {}
    try:
        return _adapter(checkpoint.tensors, config, topk)
    except VbfmtError as error:
        raise error.in_file(checkpoint.file) from None


def _adapter(tensors: Mapping[str, Tensor], config: Mapping[str, Any], topk: int | None) -> Adapter:
    bank_key = _bank_key(tensors)
    trunk = bank_key.removesuffix("vector_bank")
    bank = bank_of(tensors[bank_key])
    modules = tiled.modules_of(tensors, bank, tiled.NLU)
    _require_tied(tensors, tensors[bank_key], modules)
    _require_config(config, modules, *bank.shape)
    k = agreed_k({"`topk`": topk, _CONFIG: _plain(config.get("topk"))})
    rows = tiled.rows_by_module(tensors, modules, k, len(bank), tiled.NLU)
    head = {key: tensor for key, tensor in tensors.items() if trunk and not key.startswith(trunk)}
    require_gathered(head)
    left = _what_was_left(tensors, head)
    if left:
        warn(left)
    name = config.get("_name_or_path")
    adapter = Adapter.from_rows(
        bank,
        rows,
        tensors=head,
        base_model=name if isinstance(name, str) and name else None,
    )
    kept = peft_layout.canonical(_as_peft_says(config, head), adapter)
    return dataclasses.replace(adapter, config=kept)


def _bank_key(tensors: Mapping[str, Tensor]) -> str:
    """Return the key of the bank: the encoder's own, else any module's copy."""
    banks = [key for key in tensors if key == "vector_bank" or key.endswith(".vector_bank")]
    owners = {match["module"] for key in tensors if (match := tiled.LOGITS.match(key))}
    own = [key for key in banks if key.removesuffix(".vector_bank") not in owners]
    if len(own) != 1:
        raise SourceError(
            "not one vector bank beside the modules' copies",
            part="vector bank",
            found=", ".join(own[:3]) or "none",
            expected=" or ".join(f"{trunk}.vector_bank" for trunk in _TRUNKS),
        )
    return own[0]


def _require_tied(
    tensors: Mapping[str, Tensor], bank: Tensor, modules: Mapping[str, Module]
) -> None:
    for name in modules:
        copy = tensors.get(f"{name}.vector_bank")
        if copy is not None and copy != bank:
            raise SourceError(
                "the module's copy of the vector bank is not the shared one",
                part=f"{name}.vector_bank",
                found=copy if copy.shape != bank.shape else "other values",
                expected="the tied copy that the authors' model saves",
                advice="this is no VB-LoRA with one bank; it cannot be packed",
            )


def _require_config(
    config: Mapping[str, Any], modules: Mapping[str, Module], h: int, b: int
) -> None:
    """Refuse a config that contradicts the tensors, or names modules that do not exist."""
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
    """A size that may stand in a list of one."""
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    return value


def _as_peft_says(config: Mapping[str, Any], head: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a PEFT config would say of the trained head."""
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else ""
    tasks = [task for end, task in _TASKS.items() if str(architecture).endswith(end)]
    return {
        "task_type": tasks[0] if tasks else None,
        "modules_to_save": sorted({key.partition(".")[0] for key in head}) or None,
    }


def _what_was_left(tensors: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> str:
    """A sentence, or nothing if there is nothing to say."""
    base = [
        key
        for key in tensors
        if key not in head and not tiled.LOGITS.match(key) and not key.endswith("vector_bank")
    ]
    left = f"{len(base)} tensors of the base model were left out" if base else ""
    kept = f"the trained head ({', '.join(sorted(head)[:2])}, …) is kept" if head else ""
    return "; ".join(filter(None, (left, kept)))
