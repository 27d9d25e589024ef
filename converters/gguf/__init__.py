"""llama.cpp's GGUF LoRA: one file, tensors ``<name>.lora_a`` and ``<name>.lora_b``.

The required content is in src/llama-adapter.cpp of llama.cpp (``general.type``, ``adapter.type``,
the architecture, ``adapter.lora.alpha``, shapes). llama.cpp's converter, convert_lora_to_gguf.py,
writes the same, with one intended difference: it transposes the factors of GPT-2's Conv1D layers as
if they were weights, which llama.cpp refuses, or loads wrongly if a layer is square.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import storage
from vbfmt._format.container import Bytes
from vbfmt.converters import lora
from vbfmt.converters.gguf.base import Base, names, package, read_base
from vbfmt.converters.lowrank import LowRank
from vbfmt.errors import SourceError, TargetError
from vbfmt.module import Module

PathLike = str | os.PathLike[str]

_ALIGNMENT = 32  # GGUF's default, general.alignment
_LONGEST_NAME = 63  # GGML_MAX_NAME - 1, ggml.h


def write(
    adapter: LowRank,
    path: PathLike,
    *,
    base: PathLike | None = None,
    dtype: str = "float32",
    drop_extras: bool = False,
    overwrite: bool = False,
) -> int:
    """Write the exact factors as a GGUF file for llama.cpp, Ollama and programs built on them.

    Args:
        base: the base model's folder (its config.json) or its GGUF file; by default the folder that
            the adapter names. Names and shapes are checked against it.
        dtype: of the factors: float32, bfloat16 or float16.
        drop_extras: leave out trained biases and heads, which GGUF adapters cannot hold.

    Returns:
        bytes written.

    Raises:
        SourceError: the base cannot be read or its architecture is unknown.
        TargetError: llama.cpp could not load the result, or the gguf package is missing.
        OutputExistsError, StorageError
    """
    gguf = package()
    if dtype not in lora.DTYPES:
        raise TargetError(
            "unknown dtype", part="`dtype`", found=dtype, expected=", ".join(lora.DTYPES)
        )
    known = _base_of(adapter, base)
    tensors = _names(adapter, known)
    _require_no_extras(adapter, drop_extras)
    rank = lora.rank_of(adapter)
    header = _header(adapter, tensors, known, rank, dtype, gguf)
    pieces = _pieces(adapter, header, known, rank, dtype)
    return storage.write(path, pieces, overwrite=overwrite)


def permuted(b: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return B (out, rank) with each head's rows in the order of llama.cpp's rotary embedding.

    transformers stores the two halves of a head one after the other; llama.cpp interleaves them.
    """
    out, rank = b.shape
    if out % (2 * heads):
        raise TargetError(
            "rows do not divide into heads", found=out, expected=f"a multiple of 2 × {heads}"
        )
    by_half = b.reshape(heads, 2, out // heads // 2, rank)
    return np.ascontiguousarray(by_half.swapaxes(1, 2).reshape(out, rank))


def _require_no_extras(adapter: LowRank, drop_extras: bool) -> None:
    if adapter.tensors and not drop_extras:
        raise TargetError(
            "GGUF adapters cannot hold trained biases and heads",
            found=", ".join(list(adapter.tensors)[:3]),
            advice="leave them out with `drop_extras=True`, or merge the adapter into its base",
        )


def _base_of(adapter: LowRank, base: PathLike | None) -> Base:
    if base is not None:
        return read_base(base)
    named = adapter.base_model  # untrusted: never opened as a path, even if there is such a folder
    raise SourceError(
        "the names of GGUF tensors need the base model",
        found=f"{named!r} as its name" if named else "no base model named in the adapter",
        advice="give its folder (config.json) or its GGUF file: `base=PATH`",
    )


def _names(adapter: LowRank, base: Base) -> dict[str, str]:
    """Return, for each module name, the tensor of the base that its ΔW changes."""
    known = names(base.architecture, base.layers)
    return {
        module.name: _checked(module, known.get_name(module.name), base)
        for module in adapter.modules
    }


def _checked(module: Module, found: str | None, base: Base) -> str:
    if found is None:
        raise TargetError(
            f"llama.cpp's {base.architecture.name} has no tensor for this module",
            part=module.name,
            expected=f"a linear layer of one of {base.layers} layers",
            advice="is it the right base?",
        )
    name = f"{found}.weight"
    if base.tied and found == "output":
        raise TargetError(
            "the base's output is tied to its embedding; llama.cpp has no separate tensor for it",
            part=module.name,
            advice="merge the adapter into its base instead",
        )
    if base.tied is None and found == "output":
        raise TargetError(
            "whether the base's output is tied to its embedding is not known; llama.cpp has no "
            "separate tensor for a tied one",
            part=module.name,
            found="no tie_word_embeddings in its config",
            advice="give its GGUF file: `base=FILE`",
        )
    shape = (module.out_features, module.in_features)
    if base.shapes.get(name) != shape:
        raise TargetError(
            "the base does not fit the adapter",
            part=module.name,
            found=base.shapes.get(name, f"no tensor {name}"),
            expected=shape,
            advice="is it the right base?",
        )
    if len(name) + len(".lora_a") > _LONGEST_NAME:
        raise TargetError("a name too long for ggml", part=module.name, found=name)
    return name


def _header(
    adapter: LowRank, tensors: dict[str, str], base: Base, rank: int, dtype: str, gguf: Any
) -> bytes:
    """Return everything before the tensors' data, written by the gguf package."""
    code, size, quantization = {
        "float32": (np.float32, 4, None),
        "float16": (np.float16, 2, None),
        "bfloat16": (np.uint16, 2, gguf.GGMLQuantizationType.BF16),
    }[dtype]
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "header")
        writer = gguf.GGUFWriter(file, base.architecture.name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
        if adapter.base_model:
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, adapter.base_model)
        for module in adapter.modules:
            for factor, shape in (
                ("a", (rank, module.in_features)),
                ("b", (module.out_features, rank)),
            ):
                name = f"{tensors[module.name]}.lora_{factor}"
                count = shape[0] * shape[1] * size
                writer.add_tensor_info(name, shape, np.dtype(code), count, quantization)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with open(file, "rb") as stream:
            return stream.read()


def _pieces(adapter: LowRank, header: bytes, base: Base, rank: int, dtype: str) -> Iterator[Bytes]:
    yield header
    yield _padding(len(header))
    for module, a, b in lora.padded_factors(adapter, rank):
        leaf = module.name.rpartition(".")[2]
        if leaf in base.architecture.permuted:
            b = permuted(b, base.key_value_heads if leaf == "k_proj" else base.heads)
        for array in (a, b):
            data = lora.rounded(array, lora.DTYPES[dtype], module.name)
            yield data
            yield _padding(len(data))


def _padding(length: int) -> bytes:
    return bytes(-length % _ALIGNMENT)
