"""Standard LoRA: the folder that PEFT, vLLM, SGLang and llama.cpp's converter take."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vbfmt import storage
from vbfmt.adapter import Adapter
from vbfmt.container import Bytes
from vbfmt.converters import safetensors
from vbfmt.converters.peft import config as peft_config
from vbfmt.errors import TargetError
from vbfmt.peft_layout import CONFIG, config_text, key_of_tensor
from vbfmt.tensors import Tensor, numpy_dtype

PathLike = str | os.PathLike[str]

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Names of dtypes as users write them → as safetensors does."""


def write(
    adapter: Adapter,
    path: PathLike,
    *,
    dtype: str = "float32",
    drop_extras: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the exact factors A and B of every module, streamed, as a PEFT LoRA folder.

    Modules of a rank below the largest are filled up with zeros, so that one integer rank holds for
    all: several runtimes drop or refuse anything else.

    Args:
        dtype: of the factors: float32, bfloat16 or float16 (rounded once, to nearest even).
        drop_extras: leave out trained biases and heads. They are kept otherwise, and PEFT takes
            them; vLLM and llama.cpp refuse them.

    Raises:
        TargetError: unknown dtype, or a factor is too large for float16.
        OutputExistsError, StorageError
    """
    if dtype not in DTYPES:
        raise TargetError("unknown dtype", part="--dtype", found=dtype, expected=", ".join(DTYPES))
    rank = max(module.rank for module in adapter)
    extras = {} if drop_extras else extras_by_key(adapter)
    config = peft_config.for_lora(adapter, rank, extras=not drop_extras)
    with storage.new_folder(path, overwrite=overwrite) as folder:
        safetensors.write(
            os.path.join(folder, "adapter_model.safetensors"),
            [*_specs(adapter, rank, DTYPES[dtype]), *_specs_of(extras)],
            _contents(adapter, rank, DTYPES[dtype], extras),
            metadata={"format": "pt"},
        )
        storage.write(os.path.join(folder, CONFIG), [config_text(config)], overwrite=False)


def extras_by_key(adapter: Adapter) -> dict[str, Tensor]:
    """The other tensors under PEFT's keys."""
    modules = {module.name for module in adapter}
    return {key_of_tensor(name, modules): tensor for name, tensor in adapter.tensors.items()}


def _specs(adapter: Adapter, rank: int, dtype: str) -> Iterator[safetensors.Spec]:
    for module in adapter:
        yield _key(module.name, "A"), dtype, (rank, module.in_features)
        yield _key(module.name, "B"), dtype, (module.out_features, rank)


def _specs_of(tensors: dict[str, Tensor]) -> list[safetensors.Spec]:
    return [(key, tensor.dtype, tensor.shape) for key, tensor in tensors.items()]


def _contents(
    adapter: Adapter, rank: int, dtype: str, extras: dict[str, Tensor]
) -> Iterator[Bytes]:
    for module, a, b in adapter.iter_factors():
        missing = rank - module.rank
        for factor, array, room in (
            ("A", a, ((0, missing), (0, 0))),
            ("B", b, ((0, 0), (0, missing))),
        ):
            padded = np.pad(array, room) if missing else array
            yield _rounded(padded, dtype, _key(module.name, factor))
    for tensor in extras.values():
        yield tensor.data.data


def _rounded(factor: NDArray[np.float32], dtype: str, key: str) -> Bytes:
    if dtype == "F32":
        return Tensor.of(factor).data.data
    with np.errstate(over="ignore"):
        rounded = factor.astype(numpy_dtype(dtype))
    if dtype == "F16" and not np.isfinite(rounded).all():
        raise TargetError(
            "too large for float16",
            part=key,
            found=np.abs(factor).max(),
            expected="at most 65504",
            advice="give --dtype bfloat16",
        )
    return Tensor.of(rounded).data.data


def _key(module: str, factor: str) -> str:
    return f"base_model.model.{module}.lora_{factor}.weight"
