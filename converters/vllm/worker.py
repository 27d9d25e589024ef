"""The part of the plugin for workers: load packed adapters where vLLM reads LoRA folders.

Three functions of vLLM are wrapped. For other adapters, the wrappers call the original functions.

An error while an adapter is added fails only one request, but an error while a batch runs stops the
engine. So an accepted adapter is kept in memory and is never read again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import peft_layout
from vbfmt._files.banks import Sources
from vbfmt.adapter import Adapter
from vbfmt.converters import lora, runtimes
from vbfmt.converters._files.checkpoint import FLOATS
from vbfmt.converters.peft import config as peft_config
from vbfmt.converters.peft.loaded import as_torch
from vbfmt.converters.vllm import fit
from vbfmt.converters.vllm.pinned import Pinned
from vbfmt.errors import TargetError, in_file
from vbfmt.tensors import Tensor

if TYPE_CHECKING:
    import torch

_logger = logging.getLogger("vllm.vbfmt")

_MARK = "_vbfmt_original"


class Kept:
    """The adapters in this process's memory, by digest. Adapters with the same bank share one
    array.

    Args:
        banks: where to search for external banks, as in `vbfmt.load`.
    """

    def __init__(self, banks: Sources | None = None) -> None:
        self._where = banks
        self._adapters: dict[str, Adapter] = {}
        self._banks: dict[bytes, NDArray[np.float32]] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._adapters

    def get(self, pinned: Pinned) -> Adapter:
        """Return an adapter. If it is new, read it and keep it.

        Raises:
            VbfmtError: the file is damaged, cannot be read or has another digest, or vLLM cannot
                apply the adapter.
        """
        if pinned.digest not in self._adapters:
            adapter = pinned.load(banks=self._where)
            with in_file(pinned.file):
                runtimes.require_loadable(adapter, "vllm")
            self._adapters[pinned.digest] = self._with_shared_bank(adapter)
        return self._adapters[pinned.digest]

    def drop(self, digest: str) -> None:
        """Remove an adapter that vLLM did not accept."""
        self._adapters.pop(digest, None)

    def _with_shared_bank(self, adapter: Adapter) -> Adapter:
        """Return a copy that does not refer to the file's bytes. Equal banks share one array."""
        key = hashlib.sha256(adapter.bank.data).digest()
        return dataclasses.replace(
            adapter,
            bank=self._banks.setdefault(key, adapter.bank.copy()),
            indices=adapter.indices.copy(),
            weights=adapter.weights.copy(),
            tensors={
                name: Tensor(tensor.dtype, tensor.shape, tensor.data.copy())
                for name, tensor in adapter.tensors.items()
            },
        )


def install(banks: Sources | None = None) -> None:
    """Wrap vLLM's functions. Later calls in the same process do nothing.

    Args:
        banks: as in `vbfmt.load`.
    """
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.lora.worker_manager import WorkerLoRAManager

    if hasattr(WorkerLoRAManager._load_adapter, _MARK):
        return
    kept = Kept(banks)
    _wrap_class_method(PEFTHelper, "from_local_dir", functools.partial(_config, kept))
    _wrap_class_method(LoRAModel, "from_local_checkpoint", functools.partial(_model, kept))
    original = WorkerLoRAManager._load_adapter

    @functools.wraps(original)
    def load_adapter(manager: Any, lora_request: Any) -> Any:
        return _load(kept, original, manager, lora_request)

    setattr(load_adapter, _MARK, original)
    WorkerLoRAManager._load_adapter = load_adapter


def _wrap_class_method(cls: type, name: str, packed: Callable[..., Any]) -> None:
    """Make a class method call `packed` instead if its path is that of a packed adapter."""
    original = cls.__dict__[name].__func__

    @functools.wraps(original)
    def method(cls: type, path: str, *args: Any, **kwargs: Any) -> Any:
        pinned = Pinned.parse(path)
        if pinned is None:
            return original(cls, path, *args, **kwargs)
        return packed(cls, pinned, *args, **kwargs)

    setattr(cls, name, classmethod(method))


def _load(kept: Kept, original: Callable[..., Any], manager: Any, lora_request: Any) -> Any:
    """Wrap `WorkerLoRAManager._load_adapter`: check packed adapters before and after loading."""
    pinned = Pinned.parse(lora_request.lora_path)
    if pinned is None:
        return original(manager, lora_request)
    known = pinned.digest in kept
    try:
        adapter = kept.get(pinned)
        fit.require_no_larger(adapter, manager._adapter_manager, pinned.file)
        loaded = original(manager, lora_request)
        fit.require(loaded, manager._adapter_manager, pinned.file)
    except BaseException:
        if not known:
            kept.drop(pinned.digest)
        raise
    if not known:
        _logger.info(
            "adapter %s: %d modules from %s, trained on %s",
            lora_request.lora_name,
            len(adapter),
            pinned,
            adapter.base_model or "an unnamed base",
        )
    return loaded


def _config(kept: Kept, cls: Any, pinned: Pinned, max_position_embeddings: int | None) -> Any:
    """Replace `PEFTHelper.from_local_dir` for a packed adapter."""
    adapter = kept.get(pinned)
    config = peft_config.for_lora(adapter, lora.rank_of(adapter), extras=True)
    return cls.from_dict({**config, "vllm_max_position_embeddings": max_position_embeddings})


def _model(
    kept: Kept,
    cls: Any,
    pinned: Pinned,
    expected_lora_modules: set[str],
    peft_helper: Any,
    *,
    dtype: torch.dtype | None = None,
    skip_prefixes: list[str] | None = None,
    moe_ep_spec: Any = None,
    **options: Any,
) -> Any:
    """Replace `LoRAModel.from_local_checkpoint` for a packed adapter.

    `expected_lora_modules` is not used, because it has only the last components of names.
    `fit.require` checks full names.
    """
    if moe_ep_spec is not None:
        raise TargetError(
            "packed adapters cannot be served with expert parallelism",
            file=pinned.file,
            advice="expand the adapter and serve the folder: vbfmt expand",
        )
    adapter = kept.get(pinned)
    tensors = _tensors(adapter, dtype, pinned.file)
    model = cls.from_lora_tensors(
        tensors=tensors,
        peft_helper=peft_helper,
        dtype=dtype,
        skip_prefixes=skip_prefixes,
        **options,
    )
    expected = len(adapter) - sum(_is_skipped(m.name, skip_prefixes or []) for m in adapter)
    if len(model.loras) != expected:
        raise TargetError(
            "vLLM did not load every module",
            file=pinned.file,
            found=f"{len(model.loras)} modules",
            expected=expected,
        )
    return model


def _is_skipped(module: str, prefixes: list[str]) -> bool:
    """Return whether vLLM skips a module because inference does not use it."""
    return any(f".{prefix}" in f".{module}" for prefix in prefixes)


def _tensors(adapter: Adapter, dtype: torch.dtype | None, file: str) -> dict[str, torch.Tensor]:
    """Return all factors and heads under PEFT's keys."""
    import torch

    kind = str(dtype or torch.float32).removeprefix("torch.")
    tensors = {}
    for module, a, b in lora.padded_factors(adapter, lora.rank_of(adapter)):
        for factor, array in (("A", a), ("B", b)):
            _require_range(array, kind, f"{factor} of {module.name}", file)
            key = f"base_model.model.{module.name}.lora_{factor}.weight"
            tensors[key] = torch.from_numpy(np.ascontiguousarray(array))
    for key, tensor in peft_layout.tensors_by_key(adapter).items():
        tensors[key] = as_torch(tensor)
        if tensor.dtype in FLOATS:
            _require_range(lora.finite_values(tensor), kind, key, file)
    return tensors


def _require_range(values: NDArray[np.floating[Any]], dtype: str, part: str, file: str) -> None:
    """Refuse values that vLLM would round to infinities or to zeros."""
    wider = {"float16": "bfloat16", "bfloat16": "float32"}.get(dtype)
    advice = f"serve with --dtype {wider}" if wider else None
    with in_file(file):
        lora.require_dtype(dtype)
        lora.require_range(values, lora.DTYPES[dtype], part, advice=advice)
