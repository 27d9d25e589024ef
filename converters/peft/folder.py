"""Read and write folders with PEFT's VB-LoRA checkpoints.

Keys and shapes are those of peft/tuners/vblora/{layer,model}.py and peft/utils/save_and_load.py in
PEFT 0.13 to 0.21. A's tensors are (r, in/b, …), and B's are (out/b, r, …).
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping
from typing import Any

from vbfmt._files import PathLike, folders, json_file, peft_layout, storage
from vbfmt._files.wrappers import without_wrappers
from vbfmt.adapter import Adapter
from vbfmt.converters._files import safetensors
from vbfmt.converters._files.checkpoint import (
    FLOATS,
    Checkpoint,
    agreed_k,
    bank_of,
    open_checkpoint,
    owned,
    require_gathered,
    size_in,
)
from vbfmt.converters.hub.card import NAME as CARD
from vbfmt.converters.peft import config as peft_config
from vbfmt.converters.peft.keys import Factor, Keys, parse
from vbfmt.converters.peft.rows import TopK, as_bytes, rows_by_module
from vbfmt.errors import SourceError, TargetError, in_file, warn
from vbfmt.module import Module
from vbfmt.tensors import Tensor

_INTEGERS = ("U8", "I8", "U16", "I16", "U32", "I32", "I64")


def read(path: PathLike, *, topk: int | None = None) -> Adapter:
    """Read the adapter in a PEFT checkpoint.

    Args:
        path: the checkpoint's folder, or its weights file (``.safetensors`` or ``.bin``). A config
            beside that file is used if there is one.
        topk: k, needed if the checkpoint has logits and no config.

    Raises:
        SourceError: the checkpoint is not VB-LoRA, is incomplete or contradicts itself.
        ContentError: a value is invalid, such as NaN or an index past the end of the bank.
        StorageError: a file cannot be read.
    """
    checkpoint = open_checkpoint(path)
    adapter = from_checkpoint(checkpoint, topk=topk)
    checkpoint.require_unchanged()
    return adapter


def from_checkpoint(checkpoint: Checkpoint, *, topk: int | None = None) -> Adapter:
    """Return the adapter in an opened checkpoint. `topk` and errors are those of `read`."""
    config = checkpoint.config(peft_layout.CONFIG)
    if config is not None:
        peft_config.require_type(config, "VBLORA", checkpoint.config_file(peft_layout.CONFIG))
    with in_file(checkpoint.file):
        return from_tensors(checkpoint.tensors, config, topk=topk)


def from_tensors(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    topk: int | None = None,
) -> Adapter:
    """Return the adapter in a state dict.

    Args:
        tensors: the tensors by key.
        config: the content of ``adapter_config.json``, if there is one.
        topk: as in `read`.

    Raises:
        SourceError, ContentError: as in `read`.
    """
    keys = parse(tensors, bias=str((config or {}).get("bias", "none")))
    require_gathered({key: tensors[key] for key in keys.all})
    _require_one_bank(keys, tensors)
    _warn_of_lost_biases(keys, config or {})
    bank = bank_of(tensors[keys.bank])
    if keys.left_out:
        warn(
            f"the state dict contains the base too: {len(keys.left_out)} tensors of the base model "
            f"were left out, {len(keys.others)} other trained tensors were kept"
        )
    for key, size in zip(("num_vectors", "vector_length"), bank.shape, strict=True):
        peft_config.require_size(config or {}, key, size, "the vector bank")
    k = _agreed_k(keys, tensors, config, topk)
    modules = {
        name: _module(name, factors, tensors, (*bank.shape, k), config)
        for name, factors in keys.modules.items()
    }
    rows = rows_by_module(keys, tensors, k, len(bank))
    base_model, base_revision = peft_layout.base_of(config or {})
    adapter = Adapter.from_rows(
        bank,
        {module: rows[name] for name, module in modules.items()},
        tensors={name: owned(tensors[key]) for name, key in keys.others.items()},
        base_model=base_model,
        base_revision=base_revision,
    )
    kept = peft_layout.canonical(_unwrapped(config), adapter) if config else None
    return dataclasses.replace(adapter, config=kept) if kept else adapter


def _warn_of_lost_biases(keys: Keys, config: Mapping[str, Any]) -> None:
    """Warn if biases were trained according to the config, but the checkpoint has none.

    PEFT 0.13 to 0.20 trained VB-LoRA's biases but did not save them. The checkpoint is not refused,
    because it may be complete: the base may have no biases.
    """
    bias = config.get("bias")
    if bias not in ("vblora_only", "all"):
        return
    saved = config.get("modules_to_save")
    listed = saved if isinstance(saved, (list, tuple)) else ()
    whole = {"classifier", "score", *(name for name in listed if isinstance(name, str))}
    biases = (name for name in keys.others if name.endswith(".bias"))
    if not any(name.removesuffix(".bias").rpartition(".")[2] not in whole for name in biases):
        warn(
            f"the config has bias={bias!r}, but the checkpoint has no biases: PEFT before 0.21 "
            "trains VB-LoRA's biases and does not save them. If the base's layers have biases, "
            "their training is lost, in PEFT too"
        )


def write(
    adapter: Adapter, path: PathLike, *, overwrite: bool = False, card: bytes | None = None
) -> int:
    """Write a folder that PEFT loads as VB-LoRA, in its top-k form (for inference only).

    PEFT's form leaves out one weight of each row: the smallest or, if PEFT could not restore it
    exactly, the largest. So all weights are exact. PEFT can read both orders.

    Args:
        adapter: the adapter.
        path: the folder to write.
        overwrite: replace the folder if it exists.
        card: content of a model card to write into the folder.

    Returns:
        Number of bytes written.

    Raises:
        TargetError: modules differ in rank, which PEFT's VB-LoRA cannot express.
        OutputExistsError: `path` exists, and `overwrite` is not set.
        StorageError: the operating system reported an error.
    """
    ranks = sorted({module.rank for module in adapter})
    if len(ranks) > 1:
        raise TargetError(
            "PEFT's VB-LoRA has one rank for all modules",
            file=path,
            found=f"ranks {', '.join(map(str, ranks))}",
            advice="write standard LoRA instead: vbfmt expand",
        )
    topk = TopK.of(adapter)
    bank = ("base_model.vblora_vector_bank", "F32", adapter.bank.shape)
    others = peft_layout.tensors_by_key(adapter)  # no factor has such a key
    specs = itertools.chain(
        [bank],
        topk.specs(),
        ((key, tensor.dtype, tensor.shape) for key, tensor in others.items()),
    )
    contents = itertools.chain(
        [as_bytes(adapter.bank)],
        topk.contents(),
        (tensor.data.data for tensor in others.values()),
    )
    config = peft_config.for_vblora(adapter, ranks[0])
    with folders.new(path, overwrite=overwrite) as folder:
        length = safetensors.write(
            os.path.join(folder, peft_layout.WEIGHTS), specs, contents, metadata={"format": "pt"}
        )
        length += storage.write(
            os.path.join(folder, peft_layout.CONFIG), [json_file.text(config)], overwrite=False
        )
        if card is not None:
            length += storage.write(os.path.join(folder, CARD), [card], overwrite=False)
    return length


def _unwrapped(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config without wrappers' prefixes in ``target_modules``."""
    targets = config.get("target_modules")
    if not isinstance(targets, list):
        return config
    plain = [without_wrappers(name) if isinstance(name, str) else name for name in targets]
    return {**config, "target_modules": plain}


def _require_one_bank(keys: Keys, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a whole model whose layers have different banks."""
    for key in keys.copies:
        if tensors[key] != tensors[keys.bank]:
            raise SourceError(
                "two vector banks with different values",
                part=key,
                expected=f"the values of {keys.bank}",
                advice="VB-LoRA has one bank for all layers: save the adapter with save_pretrained",
            )


def _agreed_k(
    keys: Keys, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None, topk: int | None
) -> int:
    """Return k from the tensors, the config and the caller.

    Raises:
        SourceError: they give different values of k, or none gives k.
    """
    sources: dict[str, object] = {"`topk`": topk, "adapter_config.json": (config or {}).get("topk")}
    if not keys.in_logits_form:
        first = next(iter(keys.modules.values()))["A"]
        sources["the indices' shape"] = (tensors[first["indices"]].shape or (0,))[-1]
    return agreed_k(sources)


def _module(
    name: str,
    factors: Mapping[Factor, Mapping[str, str]],
    tensors: Mapping[str, Tensor],
    agreed: tuple[int, int, int],
    config: Mapping[str, Any] | None,
) -> Module:
    """Return a module. Its sizes follow from the shapes of its tensors.

    Args:
        name: the module's name.
        factors: factor → kind of tensor → key.
        tensors: the tensors by key.
        agreed: h, b and k.
        config: the content of ``adapter_config.json``, if there is one.

    Raises:
        SourceError: the shapes contradict each other, the bank, k or the config.
    """
    h, b, k = agreed
    shape_a, shape_b = (
        _shape_of(factors[factor], tensors, (h, k), name, factor) for factor in ("A", "B")
    )
    (rank, in_tiles), (out_tiles, rank_b) = shape_a, shape_b
    configured = size_in(peft_layout.CONFIG, "r", config["r"]) if config and "r" in config else None
    if rank != rank_b or configured not in (None, rank):
        raise SourceError(
            "ranks disagree",
            part=name,
            found=f"{rank} in A, {rank_b} in B",
            expected="the same" if configured is None else f"r = {configured}",
        )
    fan_in_fan_out = peft_config.orientation(config or {})
    return Module(name, in_tiles * b, out_tiles * b, rank, fan_in_fan_out)


def _shape_of(
    parts: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    h_and_k: tuple[int, int],
    module: str,
    factor: str,
) -> tuple[int, int]:
    """Return the first two dimensions of a factor's tensors.

    Raises:
        SourceError: the tensors' dtypes or last dimensions are wrong, or their first two dimensions
            differ.
    """
    h, k = h_and_k
    last = {"logits": h, "indices": k, "weights": k - 1}
    shapes = {what: tensors[key].shape for what, key in parts.items()}
    lead = next(iter(shapes.values()))[:2]
    for what, shape in shapes.items():
        kinds = _INTEGERS if what == "indices" else FLOATS
        dtype = tensors[parts[what]].dtype
        valid = len(shape) == 3 and shape[:2] == lead and 0 not in lead
        if not valid or shape[2] != last[what] or dtype not in kinds:
            raise SourceError(
                f"{what} of {factor} do not fit the bank or each other",
                part=module,
                found=f"{dtype} {list(shape)}",
                expected=f"(·, ·, {last[what]})",
            )
    return lead[0], lead[1]
