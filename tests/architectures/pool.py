"""Compare a mixed batch of the pool with merged models, for every text architecture of
transformers.

``python -m tests.architectures.pool [REGEX]``: run five samples, each with one of two adapters or
none, at lengths of 7, 5 and 1 positions. Print one line per architecture: the largest difference of
the logits, relative to the largest logit. A length at which the base's own logits depend on the
batch is left out (RWKV, 1 position).
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections import Counter
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.architectures import check, tiny
from vbfmt import Adapter
from vbfmt.errors import VbfmtError, VbfmtWarning
from vbfmt.torch import AdapterPool, VBLoRAConfig, inject, load_packed, merge, to_adapter

TASKS = ("causal", "sequence to sequence", "sequence classification")
NAMES = ["a", None, "b", "a", "b"]
LENGTHS = (7, 5, 1)  # 5 positions of 5 samples: a model may confuse the two dimensions
TOLERANCE = 1e-4


def main() -> None:
    """Print the outcome of each architecture, and the number of each outcome."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    outcomes: Counter[str] = Counter()
    with check.quiet():
        for task, _, name in tiny.architectures():
            if task in TASKS and re.search(" ".join(sys.argv[1:]), name):
                outcome = compared(task, name)
                outcomes[outcome.partition(":")[0]] += 1
                print(f"{name} ({task}): {outcome}", flush=True)
    print(dict(outcomes))


def compared(task: str, name: str) -> str:
    """Return "equal", "refused", "warned", "wrong" or "not comparable", and why."""
    warnings.simplefilter("ignore")
    try:
        make = _maker(name)
        adapters = _adapters(make())
        batches = [_batch(task, length) for length in LENGTHS]
        wanted = [_one_by_one(make, adapters, batch) for batch in batches]
    except Exception as error:  # noqa: BLE001 - of transformers
        return f"not comparable: {type(error).__name__}: {str(error).partition(chr(10))[0][:100]}"
    worst, refused, warned = 0.0, "", ""
    for batch, (logits, noise) in zip(batches, wanted, strict=True):
        if noise > TOLERANCE * float(logits.abs().max()):
            continue
        try:
            with warnings.catch_warnings(record=True) as messages:
                warnings.simplefilter("always", VbfmtWarning)
                found = _mixed(make(), adapters, batch)
            warned = "".join(str(each.message) for each in messages) or warned
        except VbfmtError as error:
            refused = str(error)
            continue
        worst = max(worst, float((found - logits).abs().max() / logits.abs().max()))
    if worst > TOLERANCE:
        return f"warned: {worst:.1e}, {warned}" if warned else f"wrong: {worst:.1e}"
    return f"refused: {refused}" if refused else f"equal: {worst:.1e}"


def _maker(name: str) -> Any:
    cls = getattr(transformers, name)
    config = tiny.config(cls.config_class)
    if getattr(config, "pad_token_id", 1) is None:
        config.pad_token_id = 0
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in cls(config).parameters())
    if size > check.MOST_PARAMETERS:
        raise check.NotComparableError(f"{size / 1e6:.1f} million parameters")

    def make() -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = cls(config)
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = torch.randn_like(parameter.data) * 0.05
        model.tie_weights()
        return model.eval()

    return make


def _adapters(model: nn.Module) -> dict[str, Adapter]:
    """Return two adapters with different layers, ranks, k and banks."""
    names, b = check._targets(model)
    if not names:
        raise check.NotComparableError("no linear layer of a size that VB-LoRA takes")
    some = names[: max(1, len(names) // 2)]
    sizes: dict[str, dict[str, Any]] = {
        "a": {"target_modules": names, "vector_length": b, "r": 2},
        "b": {"target_modules": some, "vector_length": b // 2, "r": 3, "topk": 1},
    }
    found = {}
    for seed, (name, size) in enumerate(sizes.items()):
        torch.manual_seed(seed)
        config = VBLoRAConfig(
            num_vectors=16, init_vector_bank_bound=0.5, init_logits_std=1.0, **size
        )
        inject(model, config, adapter_name=name)
        found[name] = to_adapter(model, adapter_name=name)
    return found


def _batch(task: str, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, 100, (len(NAMES), length), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if task == "sequence to sequence":
        batch["decoder_input_ids"] = torch.randint(5, 100, (len(NAMES), 4), generator=generator)
    return batch


def _one_by_one(
    make: Any, adapters: dict[str, Adapter], batch: dict[str, Tensor]
) -> tuple[Tensor, float]:
    """Return each sample's logits with its adapter merged, and how much the base's logits of the
    batch differ from those of single samples."""
    models = {None: make()}
    for name, adapter in adapters.items():
        models[name] = make()
        load_packed(models[name], adapter)
        merge(models[name])
    rows = [{key: value[at : at + 1] for key, value in batch.items()} for at in range(len(NAMES))]
    logits = [_logits(models[name], row) for name, row in zip(NAMES, rows, strict=True)]
    base = torch.cat([_logits(models[None], row) for row in rows])
    return torch.cat(logits), float((_logits(models[None], batch) - base).abs().max())


def _mixed(model: nn.Module, adapters: dict[str, Adapter], batch: dict[str, Tensor]) -> Tensor:
    pool = AdapterPool(model)
    for name, adapter in adapters.items():
        pool.put(name, adapter)
    with pool.forward(NAMES):
        return _logits(model, batch)


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        output = model(**batch)
    logits: Tensor = getattr(output, "logits", None) if "logits" in output else output[0]
    return logits


if __name__ == "__main__":
    main()
