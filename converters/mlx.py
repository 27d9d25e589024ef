"""Write mlx-lm's adapter folder: ``adapters.safetensors`` and ``adapter_config.json``.

mlx-lm's loader defines the format (``load_adapters`` and ``linear_to_lora_layers`` in
mlx_lm/tuner/utils.py, ``LoRALinear`` in mlx_lm/tuner/lora.py). The tensors are ``lora_a`` (in, r)
and ``lora_b`` (r, out), with y += scale · x·a·b. The config's ``keys`` are names relative to a
layer. The last ``num_layers`` layers get an adapter, or all layers if the number is negative. The
loader ignores names that its model does not have.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from vbfmt._files import PathLike, folders, json_file, storage
from vbfmt._format.container import Bytes
from vbfmt.converters import lora
from vbfmt.converters._files import safetensors
from vbfmt.converters.hub.card import NAME as CARD
from vbfmt.converters.lowrank import LowRank
from vbfmt.errors import TargetError, few

_IN_A_LAYER = re.compile(r"^(?P<stack>(?:.*\.)?)layers\.\d{1,5}\.(?P<key>.+)$")
_OF_A_TOWER = re.compile(r"vision|visual|image|audio|speech|encoder|^model\.language_model\.$")
"""Matches prefixes of layers that mlx-lm's language models do not have, or have under another name:
transformers 5's ``model.language_model.layers`` is ``language_model.model.layers`` in mlx-lm."""


def write(
    adapter: LowRank,
    path: PathLike,
    *,
    dtype: str = "float32",
    drop_extras: bool = False,
    overwrite: bool = False,
    card: bytes | None = None,
) -> int:
    """Write the exact factors as a folder for mlx-lm (``mlx_lm.generate --adapter-path``).

    Args:
        adapter: the factors to write.
        path: the folder to write.
        dtype: dtype of the factors: float32, bfloat16 or float16.
        drop_extras: leave out trained biases and heads, which mlx-lm's adapters cannot contain.
        overwrite: replace the folder if it exists.
        card: content of a model card to write into the folder.

    Returns:
        Number of bytes written.

    Raises:
        TargetError: the dtype is unknown, or the adapter has trained biases, heads or modules
            outside the language model's ``layers.<n>``, which mlx-lm never adapts.
        OutputExistsError: `path` exists, and `overwrite` is not set.
        StorageError: the operating system reported an error.
    """
    lora.require_dtype(dtype)
    _require_supported(adapter, drop_extras)
    rank = lora.rank_of(adapter)
    config = _config(adapter, rank)
    kind = lora.DTYPES[dtype]
    with folders.new(path, overwrite=overwrite) as folder:
        length = safetensors.write(
            os.path.join(folder, "adapters.safetensors"),
            list(_specs(adapter, rank, kind)),
            _contents(adapter, rank, kind),
        )
        length += storage.write(
            os.path.join(folder, "adapter_config.json"), [json_file.text(config)], overwrite=False
        )
        if card is not None:
            length += storage.write(os.path.join(folder, CARD), [card], overwrite=False)
    return length


def _require_supported(adapter: LowRank, drop_extras: bool) -> None:
    """Refuse everything that mlx-lm does not support, in one message."""
    outside = [m.name for m in adapter.modules if not _IN_A_LAYER.match(m.name)]
    towers = [
        module.name
        for module in adapter.modules
        if (match := _IN_A_LAYER.match(module.name)) and _OF_A_TOWER.search(match["stack"])
    ]
    extras = [] if drop_extras else list(adapter.tensors)
    found = [
        f"{what} ({few(names)})"
        for what, names in (
            ("modules outside of layers.<n>", outside),
            ("layers that its language models do not have, or have under another name", towers),
            ("trained biases or heads", extras),
        )
        if names
    ]
    if found:
        alone = "" if outside or towers else "leave them out with `drop_extras=True`, or "
        raise TargetError(
            "not supported by mlx-lm",
            found=" and ".join(found),
            expected="only modules like model.layers.0.self_attn.q_proj",
            advice=f"{alone}merge the adapter into its base",
        )


def _config(adapter: LowRank, rank: int) -> dict[str, Any]:
    """Return the config with the keys that mlx-lm's training writes and its loader reads."""
    matches = (_IN_A_LAYER.match(module.name) for module in adapter.modules)
    keys = {match["key"] for match in matches if match}
    return {
        "model": adapter.base_model,
        "fine_tune_type": "lora",
        "num_layers": -1,  # all layers; another number counts from the last one
        "lora_parameters": {
            "rank": rank,
            "scale": 1.0,
            "dropout": 0.0,
            "keys": sorted(keys),
        },
    }


def _specs(adapter: LowRank, rank: int, dtype: str) -> Iterator[safetensors.Spec]:
    for module in adapter.modules:
        yield f"{module.name}.lora_a", dtype, (module.in_features, rank)
        yield f"{module.name}.lora_b", dtype, (rank, module.out_features)


def _contents(adapter: LowRank, rank: int, dtype: str) -> Iterator[Bytes]:
    for module, a, b in lora.padded_factors(adapter, rank):
        for factor in (a, b):
            yield lora.rounded(np.ascontiguousarray(factor.T), dtype, module.name)
