"""Measure the error and size of the packed form of a checkpoint with logits, compared with PEFT's
top-k
form: ``python -m tests.fidelity CHECKPOINT``.

No base model is needed: PEFT's layers are put around linear layers of the right shapes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests import reference
from vbfmt import Adapter, Tensor, dumps
from vbfmt.converters import peft
from vbfmt.converters._files import safetensors

WEIGHTS = "adapter_model.safetensors"


class Errors(NamedTuple):
    """Distances from the float64 value, of every element of every factor."""

    ours: NDArray[np.float64]
    pefts: NDArray[np.float64]


def errors(checkpoint: Path, adapter: Adapter) -> Errors:
    """Return the errors of `adapter`, packed from the checkpoint, and of PEFT's top-k form, saved
    with ``save_only_topk_weights`` and loaded again."""
    logits = safetensors.read(checkpoint / WEIGHTS).tensors
    ours, pefts = [], []
    for name, through_peft in _resaved_by_peft(checkpoint, adapter):
        exact = _exact(logits, f"base_model.model.{name}", adapter)
        ours += [(x - y).ravel() for x, y in zip(adapter.factors(name), exact, strict=True)]
        pefts += [(x - y).ravel() for x, y in zip(through_peft, exact, strict=True)]
    found = Errors(np.concatenate(ours), np.concatenate(pefts))
    assert len(found.ours) == sum(m.rank * (m.in_features + m.out_features) for m in adapter)
    return found


def size_limit(adapter: Adapter) -> int:
    """Return the largest expected size: bank, indices, weights, other tensors, 64 bytes per module,
    and 4 KiB."""
    held = adapter.bank.nbytes + adapter.indices.nbytes + adapter.weights.nbytes
    held += sum(tensor.data.nbytes for tensor in adapter.tensors.values())
    return held + 64 * len(adapter) + 4096


def _resaved_by_peft(
    checkpoint: Path, adapter: Adapter
) -> Iterator[tuple[str, tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    with tempfile.TemporaryDirectory() as folder:
        model = _loaded(checkpoint, adapter)
        model.peft_config["default"].save_only_topk_weights = True
        model.save_pretrained(folder)
        resaved = _loaded(Path(folder), adapter)
    for name, layer in resaved.named_modules():
        if hasattr(layer, "vblora_logits_A"):
            a, b = layer._get_lora_matrices("default")
            yield name.removeprefix("base_model.model."), (a.detach().numpy(), b.detach().numpy())


def _loaded(checkpoint: Path, adapter: Adapter) -> Any:
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(str(checkpoint))
    # The linear layers without the rest cannot generate or classify.
    config.task_type = config.modules_to_save = None
    return PeftModel.from_pretrained(_linear_layers(adapter), str(checkpoint), config=config)


def _linear_layers(adapter: Adapter) -> Any:
    """Return a module with the adapter's linear layers under their names. Each weight is a single
    stored zero."""
    import torch
    from torch import nn

    root = nn.Module()
    for module in adapter:
        linear = nn.Linear(1, 1, bias=False)
        linear.in_features, linear.out_features = module.in_features, module.out_features
        zero = torch.zeros(1, 1).expand(module.out_features, module.in_features)
        linear.weight = nn.Parameter(zero)
        owner = root
        *path, last = module.name.split(".")
        for step in path:
            if not hasattr(owner, step):
                owner.add_module(step, nn.Module())
            owner = getattr(owner, step)
        owner.add_module(last, linear)
    return root


def _exact(
    logits: Mapping[str, Tensor], key: str, adapter: Adapter
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = (logits[f"{key}.vblora_logits_{factor}"].numpy() for factor in "AB")
    exact_a = reference.subvectors(a.reshape(-1, adapter.h), adapter.bank, adapter.k)
    exact_b = reference.subvectors(b.reshape(-1, adapter.h), adapter.bank, adapter.k)
    tiles, rank, _ = b.shape
    exact_b = exact_b.reshape(tiles, rank, adapter.b).swapaxes(1, 2).reshape(-1, rank)
    return exact_a.reshape(rank, -1), exact_b


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt((values**2).mean()))


def main(checkpoint: Path) -> None:
    """Print the table."""
    adapter = peft.read(checkpoint)
    found = errors(checkpoint, adapter)
    bound = reference.bound(adapter.bank, adapter.k)
    logits, packed = (checkpoint / WEIGHTS).stat().st_size, len(dumps(adapter))
    print("| | vbfmt | PEFT's top-k form | at most |")
    print("|---|---|---|---|")
    print(f"| bytes (logits: {logits:,}) | {packed:,} | | {size_limit(adapter):,} |")
    ours, pefts = (np.abs(errors).max() for errors in found)
    print(f"| largest error of an element | {ours:.2g} | {pefts:.2g} | {bound:.2g} |")
    print(f"| root mean square of them | {_rms(found.ours):.2g} | {_rms(found.pefts):.2g} | |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
