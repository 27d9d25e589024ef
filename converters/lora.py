"""Write standard LoRA: a folder that PEFT, vLLM, SGLang and llama.cpp's converter load."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import PathLike, folders, json_file, peft_layout, storage
from vbfmt._format.container import Bytes
from vbfmt.converters._files import safetensors
from vbfmt.converters.hub.card import NAME as CARD
from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.peft import config as peft_config
from vbfmt.errors import TargetError
from vbfmt.module import Module
from vbfmt.tensors import SMALLEST_NORMAL, Tensor, numpy_dtype

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Name of a dtype as users write it → its name in safetensors."""


_LARGEST = {"F32": "3.403e38", "BF16": "3.39e38", "F16": "65504"}
_ADVICE = {"F16": "give `dtype=bfloat16`", "BF16": "give `dtype=float32`"}


def write(
    adapter: LowRank,
    path: PathLike,
    *,
    dtype: str = "float32",
    drop_extras: bool = False,
    overwrite: bool = False,
    card: bytes | None = None,
    experts: bool | None = None,
    names: Mapping[str, str] | None = None,
) -> int:
    """Write the factors A and B of every module as a PEFT LoRA folder.

    The factors are streamed. Those of an `Adapter` are exact. Those of a sum of adapters are exact
    except for the rounding of B times its weight (see `vbfmt.converters.lowrank.combine`).

    Modules with a smaller rank are padded with zeros to the largest rank, because several runtimes
    refuse or drop modules of different ranks.

    Args:
        adapter: the factors and other trained tensors to write.
        path: the folder to write.
        dtype: dtype of the factors: float32, bfloat16 or float16, rounded once to nearest even.
        drop_extras: leave out trained biases and heads. If they are written, PEFT loads them, but
            some other runtimes do not (see `vbfmt.converters.runtimes`).
        overwrite: replace the folder if it exists.
        card: content of a model card to write into the folder.
        experts: whether the base is a mixture-of-experts model; None if unknown.
        names: module's name → the name in its keys, for modules where the two differ; see
            `vbfmt.converters.peft.on_base`.

    Returns:
        Number of bytes written.

    Raises:
        TargetError: the dtype is unknown, or a factor is too large or too small for it.
        OutputExistsError: `path` exists, and `overwrite` is not set.
        StorageError: the operating system reported an error.
    """
    require_dtype(dtype)
    rank = rank_of(adapter)
    extras = {} if drop_extras else peft_layout.tensors_by_key(adapter)
    keys = {m.name: _keys((names or {}).get(m.name, m.name)) for m in adapter.modules}
    for pair in keys.values():
        for key in pair:
            if key in extras:
                raise TargetError(
                    "another trained tensor has the key of a factor",
                    part=key,
                    advice="leave such tensors out: `drop_extras=True`",
                )
    config = peft_config.for_lora(adapter, rank, extras=not drop_extras, experts=experts)
    with folders.new(path, overwrite=overwrite) as folder:
        length = safetensors.write(
            os.path.join(folder, peft_layout.WEIGHTS),
            _specs(adapter, keys, rank, DTYPES[dtype], extras),
            _contents(adapter, keys, rank, DTYPES[dtype], extras),
            metadata={"format": "pt"},
        )
        length += storage.write(
            os.path.join(folder, peft_layout.CONFIG), [json_file.text(config)], overwrite=False
        )
        if card is not None:
            length += storage.write(os.path.join(folder, CARD), [card], overwrite=False)
    return length


def require_dtype(dtype: str) -> None:
    """Refuse a dtype that is not in `DTYPES`.

    Raises:
        TargetError: the dtype is unknown.
    """
    if dtype not in DTYPES:
        raise TargetError("unknown dtype", part="`dtype`", found=dtype, expected=", ".join(DTYPES))


def rank_of(adapter: LowRank) -> int:
    """Return the rank with which all modules are written."""
    return max(module.rank for module in adapter.modules)


def padded_factors(
    adapter: LowRank, rank: int
) -> Iterator[tuple[Module, NDArray[np.float32], NDArray[np.float32]]]:
    """Yield (module, A, B) for all modules, padded with zeros.

    A is (rank, in_features) and B is (out_features, rank), float32.
    """
    for module, a, b in adapter.iter_factors():
        missing = rank - module.rank
        if missing:
            a, b = np.pad(a, ((0, missing), (0, 0))), np.pad(b, ((0, 0), (0, missing)))
        yield module, a, b


def finite_values(tensor: Tensor) -> NDArray[np.float64]:
    """Return the values of a floating-point tensor, with 0 for NaN and infinities."""
    return np.nan_to_num(tensor.numpy().astype(np.float64), posinf=0, neginf=0)


def _specs(
    adapter: LowRank,
    keys: Mapping[str, tuple[str, str]],
    rank: int,
    dtype: str,
    extras: Mapping[str, Tensor],
) -> Iterator[safetensors.Spec]:
    for module in adapter.modules:
        a, b = keys[module.name]
        yield a, dtype, (rank, module.in_features)
        yield b, dtype, (module.out_features, rank)
    for key, tensor in extras.items():
        yield key, tensor.dtype, tensor.shape


def _contents(
    adapter: LowRank,
    keys: Mapping[str, tuple[str, str]],
    rank: int,
    dtype: str,
    extras: Mapping[str, Tensor],
) -> Iterator[Bytes]:
    for module, a, b in padded_factors(adapter, rank):
        for key, array in zip(keys[module.name], (a, b), strict=True):
            yield rounded(array, dtype, key)
    for tensor in extras.values():
        yield tensor.data.data


def rounded(factor: NDArray[np.float32], dtype: str, key: str) -> Bytes:
    """Return a factor's bytes in another dtype, rounded once to nearest even.

    Args:
        factor: the factor, any shape.
        dtype: safetensors name of the new dtype.
        key: the factor's key, for messages.

    Raises:
        TargetError: an element is too large for the dtype, or all are too small for its precision.
    """
    require_range(factor, dtype, key, advice=_ADVICE.get(dtype))
    rounded = factor if dtype == "F32" else factor.astype(numpy_dtype(dtype))
    return np.ascontiguousarray(rounded).reshape(-1).view(np.uint8).data


def require_range(
    values: NDArray[np.floating[Any]], dtype: str, part: str, *, advice: str | None = None
) -> None:
    """Refuse values that a dtype cannot represent.

    Args:
        values: the values, of any shape.
        dtype: safetensors name of the dtype to round to (F32, BF16 or F16).
        part: a name for the values, for messages.
        advice: what to do, for messages.

    Raises:
        TargetError: an element is too large for the dtype, or all elements of a matrix are too
            small for its precision. (Small biases are accepted, because they make no difference.)
    """
    largest = np.abs(values).max(initial=0)
    narrower = values.dtype != numpy_dtype(dtype)
    if values.ndim > 1 and narrower and 0 < largest < SMALLEST_NORMAL[dtype]:
        raise TargetError(
            f"too small for {_named(dtype)}",
            part=part,
            found=f"at most {largest:.3g}",
            expected=f"at least {SMALLEST_NORMAL[dtype]:.3g}",
            advice=advice,
        )
    with np.errstate(over="ignore"):
        finite = np.isfinite(largest.astype(numpy_dtype(dtype)))
    if not finite:
        raise TargetError(
            f"too large for {_named(dtype)}",
            part=part,
            found=largest,
            expected=f"at most {_LARGEST[dtype]}",
            advice=advice,
        )


def _named(dtype: str) -> str:
    return next(name for name, code in DTYPES.items() if code == dtype)


def _keys(module: str) -> tuple[str, str]:
    root = f"base_model.model.{module}.lora_"
    return f"{root}A.weight", f"{root}B.weight"
