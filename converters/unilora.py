"""Read PEFT's Uni-LoRA: one trained vector θ, and for every LoRA parameter an index into θ.

It is the case b = 1, k = 1 of VB-LoRA: each entry of θ times its scale, 1/√(number of its uses), is
a vector of the bank. Keys and indices are those of peft/tuners/unilora/{layer,model}.py in PEFT
0.21. spec/rationale.md explains why the packed form stores the indices and not their seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import PathLike, peft_layout
from vbfmt._files.peft_layout import names_of
from vbfmt._math.admixture import LARGEST_BANK, Rows, index_dtype
from vbfmt.adapter import Adapter
from vbfmt.converters._files.checkpoint import (
    FLOATS,
    Checkpoint,
    owned,
    require_gathered,
    require_kept,
    shown,
    size_in,
)
from vbfmt.converters.peft import config as peft_config
from vbfmt.errors import SourceError, few, in_file, warn
from vbfmt.module import Module
from vbfmt.tensors import Tensor

_THETA = re.compile(r"^(?:.*\.)?unilora_theta_d(?:\.[^.]+)?$")
_PART = re.compile(
    r"^(?:base_model\.model\.)?(?P<module>.+)\.unilora_(?P<what>indices|scales)_(?P<factor>[AB])"
    r"(?:\.[^.]+)?$"
)
_HIGHEST_RANK = 1024  # an untrusted config must not determine how much is allocated
_MOST_PARAMETERS = 1 << 26
"""Largest number of LoRA parameters for which indices are generated from a seed. This takes 16
bytes for each parameter."""
_LARGEST_SEED = 1 << 64
_SEED = 42
"""PEFT's default, if the config has no seed."""
_INTEGERS = ("U8", "I16", "I32", "I64")


def from_checkpoint(
    checkpoint: Checkpoint, *, topk: int | None = None, base: PathLike | None = None
) -> Adapter:
    """Return the adapter in a PEFT Uni-LoRA checkpoint.

    Args:
        checkpoint: the opened checkpoint.
        topk: the number k of vectors per sub-vector. Uni-LoRA's is always 1, so any other number is
            refused.
        base: the base model's folder, needed if the checkpoint contains a seed instead of indices.
            Its config gives the modules in PEFT's order. Its weights are not read.

    Warns:
        VbfmtWarning: the packed size, compared with that of θ and of LoRA.

    Raises:
        SourceError: the checkpoint is not Uni-LoRA, is incomplete, or needs a base.
        ContentError: a value breaks a rule.
    """
    with in_file(checkpoint.file):
        return _adapter(checkpoint, topk, base)


def _adapter(checkpoint: Checkpoint, topk: int | None, base: PathLike | None) -> Adapter:
    if topk not in (None, 1):
        raise SourceError("Uni-LoRA has k = 1", part="`topk`", found=topk, expected=1)
    tensors = checkpoint.tensors
    config = checkpoint.config(peft_layout.CONFIG)
    if config is not None:
        peft_config.require_type(config, "UNILORA", checkpoint.config_file(peft_layout.CONFIG))
    theta = _theta(tensors)
    peft_config.require_size(config or {}, "theta_d_length", len(theta), "θ")
    parts, stored = _parts(tensors)
    fan_in_fan_out = peft_config.orientation(config or {})
    if stored:
        indices = _stored_indices(stored, len(theta))
        _require_rank(config or {}, indices)
        scales = _one_scale_each(stored, indices, len(theta))
    else:
        indices = _indices_of_seed(config, base, len(theta))
        scales = _scales_of(indices, len(theta))
    of_base = {f"{peft_layout.PREFIX}{name}.base_layer.weight" for name in indices} & tensors.keys()
    if of_base:  # PEFT saves them for an adapted embedding and output head
        warn(f"weights of the base model were left out: {few(sorted(of_base))}")
    ours = parts | of_base
    others = [key for key in tensors if key not in ours and not _THETA.match(key)]
    require_gathered(tensors)
    trained = names_of(others, peft_layout.PREFIX, indices)
    name, revision = peft_layout.base_of(config or {})
    rows = {
        Module(module, a.shape[1], len(b), len(a), fan_in_fan_out): _rows(a, b, len(theta))
        for module, (a, b) in indices.items()
    }
    adapter = Adapter.from_rows(
        (theta * scales)[:, None],
        rows,
        tensors={inner: owned(tensors[key]) for inner, key in trained.items()},
        base_model=name,
        base_revision=revision,
        metadata={"method": "Uni-LoRA"},
    )
    packed = adapter.bank.nbytes + adapter.indices.nbytes
    warn(
        f"Uni-LoRA has an index for every LoRA parameter: {packed} bytes packed, "
        f"{adapter.bank.nbytes} as θ and a seed, {4 * adapter.N} as LoRA in float32"
    )
    return adapter


Pair = tuple[NDArray[Any], NDArray[Any]]
"""Indices of A (r, in) and of B (out, r)."""


def _parts(
    tensors: Mapping[str, Tensor],
) -> tuple[set[str], dict[tuple[str, str, str], Tensor]]:
    """Return the keys of stored indices and scales, and their tensors by (module, kind, factor).

    Raises:
        SourceError: two keys have the same meaning.
    """
    parts = {key: match for key in tensors if (match := _PART.match(key))}
    stored = {
        (match["module"], match["what"], match["factor"]): tensors[key]
        for key, match in parts.items()
    }
    if len(stored) != len(parts):
        raise SourceError("one tensor under two keys", part=next(iter(parts)))
    return set(parts), stored


def _theta(tensors: Mapping[str, Tensor]) -> NDArray[np.float32]:
    keys = [key for key in tensors if _THETA.match(key)]
    if len(keys) != 1:
        raise SourceError(
            "not exactly one Uni-LoRA vector",
            found=few(keys) or "none",
            expected="one key like base_model.unilora_theta_d",
        )
    tensor = tensors[keys[0]]
    if tensor.dtype not in FLOATS or len(tensor.shape) != 1 or not tensor.shape[0]:
        raise SourceError("not a vector", part=keys[0], found=tensor, expected="(d,)")
    if tensor.shape[0] > LARGEST_BANK:
        raise SourceError(
            "θ is too long for a bank with 16-bit indices",
            part=keys[0],
            found=tensor.shape[0],
            expected=f"at most {LARGEST_BANK}",
            advice="keep this checkpoint as it is: it is smaller than its indices would be",
        )
    require_kept(tensor.numpy(), keys[0])
    return tensor.numpy().astype("<f4")


def _stored_indices(stored: Mapping[tuple[str, str, str], Tensor], length: int) -> dict[str, Pair]:
    result = {}
    for name in dict.fromkeys(module for module, _, _ in stored):
        pair = []
        for factor in "AB":
            tensor = stored.get((name, "indices", factor))
            valid = tensor and tensor.dtype in _INTEGERS and len(tensor.shape) == 2
            if not tensor or not valid or 0 in tensor.shape:
                raise SourceError(
                    "incomplete checkpoint", part=f"{name}, indices {factor}", found=tensor
                )
            values = tensor.numpy()
            if values.min() < 0 or values.max() >= length:
                raise SourceError(
                    "index outside of θ",
                    part=f"{name}, indices {factor}",
                    expected=f"0 to {length - 1}",
                )
            pair.append(values)
        if pair[0].shape[0] != pair[1].shape[1]:
            raise SourceError(
                "ranks disagree", part=name, found=f"{pair[0].shape} and {pair[1].shape}"
            )
        result[name] = (pair[0], pair[1])
    return result


def _one_scale_each(
    stored: Mapping[tuple[str, str, str], Tensor], indices: Mapping[str, Pair], length: int
) -> NDArray[np.float32]:
    """Return the scale of every entry of θ, with 0 for unused entries.

    Raises:
        SourceError: an entry has different scales at different uses.
    """
    result = np.full(length, np.nan, dtype=np.float32)
    for name, pair in indices.items():
        for factor, positions in zip("AB", pair, strict=True):
            tensor = stored.get((name, "scales", factor))
            if tensor is None or tensor.dtype not in FLOATS or tensor.shape != positions.shape:
                raise SourceError(
                    "incomplete checkpoint",
                    part=f"{name}, scales {factor}",
                    found=tensor,
                    expected=list(positions.shape),
                )
            values = tensor.numpy().astype(np.float32)
            unseen = np.isnan(result[positions])
            result[positions[unseen]] = values[unseen]
            if not np.array_equal(result[positions], values):
                raise SourceError("one entry of θ has two scales", part=f"{name}, scales {factor}")
    return np.nan_to_num(result, nan=0.0)


def _scales_of(indices: Mapping[str, Pair], length: int) -> NDArray[np.float32]:
    """Return 1/√(number of uses) for every entry of θ, with 0 for unused entries, computed as in
    PEFT."""
    import torch

    flat = np.concatenate([part.reshape(-1) for pair in indices.values() for part in pair])
    counts = torch.from_numpy(np.bincount(flat, minlength=length))
    scales = torch.where(counts > 0, counts.float().rsqrt(), torch.zeros(()))
    values: NDArray[np.float32] = scales.numpy()
    return values


def _indices_of_seed(
    config: Mapping[str, Any] | None, base: PathLike | None, length: int
) -> dict[str, Pair]:
    """Return the indices that PEFT generates when it loads the checkpoint.

    They come from PEFT's random generator, in the order of the base's modules.

    Raises:
        SourceError: the base or the config is missing or does not fit.
    """
    if config is None or base is None:
        raise SourceError(
            "the checkpoint holds a seed instead of indices",
            found="no adapter_config.json" if config is None else f"seed {config.get('proj_seed')}",
            advice="give the base model's folder, whose config has the modules' order: `base=PATH`",
        )
    rank = size_in(peft_layout.CONFIG, "r", config.get("r"))
    if rank > _HIGHEST_RANK:
        raise SourceError(
            "rank is out of range", part="r", found=rank, expected=f"1 to {_HIGHEST_RANK}"
        )
    seed = _seed(config.get("proj_seed", _SEED))
    from vbfmt.converters.peft.skeleton import shapes_in_order

    shapes = shapes_in_order(config, base)
    total = sum(rank * (wide + high) for wide, high in shapes.values())
    if total > _MOST_PARAMETERS:
        raise SourceError(
            "indices for too many parameters",
            part="r",
            found=total,
            expected=f"at most {_MOST_PARAMETERS}",
        )
    from peft.tuners.unilora.model import UniLoraModel

    flat = UniLoraModel.generate_index(total, length, seed).numpy()
    result = {}
    start = 0
    for name, (wide, high) in shapes.items():
        middle, end = start + rank * wide, start + rank * (wide + high)
        result[name] = (
            flat[start:middle].reshape(rank, wide),
            flat[middle:end].reshape(high, rank),
        )
        start = end
    return result


def _seed(value: object) -> int:
    """Return the seed of the indices.

    Raises:
        SourceError: the seed is not an integer in range. Null is refused, because NumPy would then
            draw different indices each time.
    """
    if type(value) is not int or not 0 <= value < _LARGEST_SEED:
        raise SourceError(
            "not a seed",
            part="proj_seed",
            found=f"{shown(value)} in {peft_layout.CONFIG}",
            expected="a whole number, 0 to 2⁶⁴ − 1",
        )
    return value


def _require_rank(config: Mapping[str, Any], indices: Mapping[str, Pair]) -> None:
    """Refuse a config that contradicts the modules' rank."""
    rank = size_in(peft_layout.CONFIG, "r", config["r"]) if "r" in config else None
    for name, (a, _) in indices.items():
        if rank not in (None, len(a)):
            raise SourceError("ranks disagree", part=name, found=len(a), expected=f"r = {rank}")


def _rows(a: NDArray[Any], b: NDArray[Any], length: int) -> Rows:
    flat = np.concatenate([a.reshape(-1), b.T.reshape(-1)])
    chosen = flat.astype(index_dtype(length))[:, None]
    return Rows(chosen, np.empty((len(chosen), 0), dtype="<f4"))
