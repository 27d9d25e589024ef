"""Small random adapters and base folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.tensor_files import write_tensors
from vbfmt import Adapter, Module, Tensor
from vbfmt._math.admixture import canonical_rows
from vbfmt.converters._files import safetensors

NUMPY = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
SHAPES = {
    "model.layers.0.q": (16, 24),
    "model.layers.0.k": (8, 24),
    "model.layers.1.q": (16, 24),
    "model.layers.1.k": (8, 24),
}
"""(out_features, in_features) of the default modules of `adapter_of`."""


def adapter_of(
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    *,
    seed: int = 0,
    rank: int = 2,
    b: int = 4,
    scale: float = 0.1,
    fan_in_fan_out: bool = False,
    **others: Any,
) -> Adapter:
    """Return an adapter with k = 2 and h = 16 for modules of these shapes, (out_features,
    in_features)."""
    random = np.random.default_rng(seed)
    rows = {}
    for name, (out_features, in_features) in shapes.items():
        module = Module(name, in_features, out_features, rank, fan_in_fan_out)
        count = module.rows(b)
        first = random.integers(16, size=count)
        indices = np.stack([first, (first + random.integers(1, 16, count)) % 16], axis=1)
        shares = random.random((count, 1))
        rows[module] = canonical_rows(indices, np.concatenate([shares, 1 - shares], axis=1), 16)
    bank = (random.standard_normal((16, b)) * scale).astype(np.float32)
    return Adapter.from_rows(bank, rows, **others)


def weights_of(
    shapes: Mapping[str, tuple[int, ...]] = SHAPES, *, dtype: str = "F32", seed: int = 1
) -> dict[str, Tensor]:
    """Return random weights of modules, with an embedding and a norm."""
    random = np.random.default_rng(seed)
    named = {f"{name}.weight": shape for name, shape in shapes.items()}
    named |= {"model.embed.weight": (32, 24), "model.norm.weight": (24,)}
    return {name: tensor_of(random.standard_normal(shape), dtype) for name, shape in named.items()}


def tensor_of(values: NDArray[Any], dtype: str = "F32") -> Tensor:
    """Return a tensor of these values, rounded to a dtype."""
    from vbfmt.tensors import numpy_dtype

    return Tensor.of(np.asarray(values).astype(numpy_dtype(dtype)))


def save_base(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    shards: int = 1,
    config: Mapping[str, Any] | None = None,
    side_files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a model's folder with these tensors, in this number of files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    for name, content in (side_files or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    if shards == 1:
        write_tensors(folder / "model.safetensors", tensors)
        return folder
    names = list(tensors)
    places = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        here = names[number::shards]
        places |= dict.fromkeys(here, file)
        write_tensors(folder / file, {name: tensors[name] for name in here})
    total = sum(tensor.data.size for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder's safetensors files."""
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in safetensors.read(path).tensors.items()
    }


def others_beside(path: Path) -> Sequence[str]:
    """Return the names of other files in a path's folder, including hidden ones."""
    return sorted(entry.name for entry in path.parent.iterdir() if entry != path)
