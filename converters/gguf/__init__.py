"""Write llama.cpp's GGUF LoRA: one file with tensors ``<name>.lora_a`` and ``<name>.lora_b``.

src/llama-adapter.cpp of llama.cpp shows what such a file must contain: ``general.type``,
``adapter.type``, the architecture, ``adapter.lora.alpha`` and the shapes. llama.cpp's converter,
convert_lora_to_gguf.py, writes the same, except for GPT-2's Conv1D layers: it transposes their
factors as if they were weights. llama.cpp refuses such a file, or loads it wrongly if a layer is
square. So the factors are not transposed here.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import PathLike, storage
from vbfmt._format.container import Bytes
from vbfmt.converters import lora
from vbfmt.converters.gguf.base import Base, names, package, read_base
from vbfmt.converters.lowrank import LowRank
from vbfmt.errors import SourceError, TargetError, few
from vbfmt.module import Module

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
        adapter: the factors to write.
        path: the file to write.
        base: the base model's folder, from which config.json is read, or its GGUF file, against
            which names and shapes are checked. It must be given.
        dtype: dtype of the factors: float32, bfloat16 or float16.
        drop_extras: leave out trained biases and heads, which GGUF adapters cannot contain.
        overwrite: replace an existing file.

    Returns:
        Number of bytes written.

    Raises:
        SourceError: the base is not given, cannot be read, or its architecture is unknown.
        TargetError: the dtype is unknown, or llama.cpp could not load the result.
        MissingExtraError: the gguf package is not installed.
        OutputExistsError: `path` exists, and `overwrite` is not set.
        StorageError: the operating system reported an error.
    """
    gguf = package()
    lora.require_dtype(dtype)
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

    Args:
        b: B of a module that computes queries or keys, (out, rank).
        heads: number of attention heads in its output.

    Raises:
        TargetError: out is not a multiple of 2 · heads.
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
            found=few(list(adapter.tensors)),
            advice="leave them out with `drop_extras=True`, or merge the adapter into its base",
        )


def _base_of(adapter: LowRank, base: PathLike | None) -> Base:
    if base is not None:
        return read_base(base)
    named = adapter.base_model  # from an untrusted file, so never opened as a path
    raise SourceError(
        "the names of GGUF tensors need the base model",
        found=f"{named!r} as its name" if named else "no base model named in the adapter",
        advice="give its folder (config.json) or its GGUF file: `base=PATH`",
    )


def _names(adapter: LowRank, base: Base) -> dict[str, str]:
    """Return the tensor of the base that each module's ΔW changes, by module name.

    Raises:
        TargetError: a module has no such tensor, or two modules have the same tensor.
    """
    known = names(base.architecture, base.layers)
    owners: dict[str, str] = {}
    for module in adapter.modules:
        name = _checked(module, known.get_name(module.name), base)
        if name in owners:
            raise TargetError(
                "two modules of the adapter change one tensor of the base",
                part=module.name,
                found=f"{name}, as {owners[name]}",
                advice="is it the right base?",
            )
        owners[name] = module.name
    return {module: name for name, module in owners.items()}


def _checked(module: Module, found: str | None, base: Base) -> str:
    """Return the name of the base's tensor for a module.

    Args:
        module: the adapted module.
        found: the tensor's name in llama.cpp without ``.weight``, or None if it has no name there.
        base: the base model.

    Raises:
        TargetError: the base has no separate tensor for it, or a tensor with another shape.
    """
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
            "the base's config does not say whether its output is tied to its embedding; llama.cpp "
            "has no separate tensor for a tied output",
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
        raise TargetError("a tensor's name is too long for ggml", part=module.name, found=name)
    return name


def _header(
    adapter: LowRank, tensors: dict[str, str], base: Base, rank: int, dtype: str, gguf: Any
) -> bytes:
    """Return everything that precedes the tensors' data, as the gguf package writes it."""
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
