"""Whether vLLM will apply every module of a loaded LoRA, and to a layer of its size.

vLLM ignores a module that its model does not have, and copies factors of another base into the
corner of a larger buffer. Either gives wrong answers without a word.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from vbfmt.adapter import Adapter
from vbfmt.errors import ModelError, few

PathLike = str | os.PathLike[str]

_EXPAND = "expand the adapter and serve the folder: vbfmt expand"


def require_no_larger(adapter: Adapter, manager: Any, file: PathLike) -> None:
    """Check that an adapter's layers have no more features than those of the model.

    A few bytes of a packed file can stand for gigabytes of factors, and a worker that runs out of
    memory ends the engine. So this comes before any factor is composed. (vLLM has looked at the
    rank by then.)

    Raises:
        ModelError: they have more.
    """
    found = sum(module.in_features + module.out_features for module in adapter.modules)
    pairs = [pair for _, pair in _layers(manager) if _is_checkable(*pair)]
    there = sum(a.shape[3] + b.shape[2] for a, b in pairs) * _ranks() * _stages()
    if found > there:
        raise ModelError(
            "the adapter was trained on a larger model",
            file=file,
            found=f"{found} features of all layers together",
            expected=f"at most {there}",
            advice="serve the model that the adapter was trained on",
        )


def require(loaded: Any, manager: Any, file: PathLike) -> None:
    """Check a `LoRAModel` against the layers of a `LoRAModelManager`.

    Raises:
        ModelError: the model lacks a module, has it in another size, or this cannot be checked.
    """
    layers = dict(_layers(manager))
    elsewhere = tuple(f"{name}." for name in _on_other_ranks(manager.model))
    missing = []
    for name, weights in loaded.loras.items():
        layer = layers.get(name)
        if layer is None and manager.is_pooling_model:
            layer = layers.get(f"model.{name}")
        if layer is not None:
            _require_size(name, weights, *layer, file)
        elif not f"{name}.".startswith(elsewhere or ("\0",)):
            missing.append(name)
    if missing:
        raise ModelError(
            "the served model has no such modules, or takes no LoRA there",
            file=file,
            found=few(sorted(missing)),
            expected=f"such as {few(sorted(layers))}",
            advice="serve the model that the adapter was trained on",
        )


def _layers(manager: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The names that an adapter may use, each with the buffers of A and B that it fills.

    A fused layer (``qkv_proj``) goes by the names of its parts.
    """
    packed: Mapping[str, list[str]] = manager.packed_modules
    for name, module in manager.modules.items():
        parts = packed.get(name, [name])
        a = _as_tuple(getattr(module, "lora_a_stacked", ()))
        b = _as_tuple(getattr(module, "lora_b_stacked", ()))
        checkable = len(a) == len(b) == len(parts)
        for number, part in enumerate(parts):
            yield part, (a[number], b[number]) if checkable else (None, None)


def _as_tuple(buffers: Any) -> tuple[Any, ...]:
    return tuple(buffers) if isinstance(buffers, (tuple, list)) else (buffers,)


def _on_other_ranks(model: Any) -> Iterator[str]:
    """Names of the layers that pipeline parallelism has put elsewhere."""
    from vllm.model_executor.models.utils import PPMissingLayer

    for name, module in model.named_modules():
        if isinstance(module, PPMissingLayer):
            yield name


def _require_size(name: str, weights: Any, buffer_a: Any, buffer_b: Any, file: PathLike) -> None:
    """Buffers are (slots, 1, rank, in) and (slots, 1, out, rank), sharded over the ranks."""
    if not _is_checkable(buffer_a, buffer_b):
        raise ModelError(
            "packed adapters are not served in this kind of layer",
            file=file,
            part=name,
            advice=_EXPAND,
        )
    found = (weights.lora_a.shape[1], weights.lora_b.shape[0])
    here = (buffer_a.shape[3], buffer_b.shape[2])
    shards = _ranks()
    if not all(_is_whole(size, part, shards) for size, part in zip(found, here, strict=True)):
        raise ModelError(
            "the adapter was trained on a model of another size",
            file=file,
            part=name,
            found=f"{found[0]} → {found[1]} features",
            expected=f"{here[0]} → {here[1]}" + (f" on each of {shards} ranks" * (shards > 1)),
            advice="serve the model that the adapter was trained on",
        )


def _is_checkable(buffer_a: Any, buffer_b: Any) -> bool:
    """Return whether these are the buffers of a linear layer."""
    return buffer_a is not None and buffer_a.ndim == buffer_b.ndim == 4


def _is_whole(size: int, part: int, ranks: int) -> bool:
    """Return whether a layer of `size` features can leave `part` of them on one of the ranks."""
    return size % part == 0 and ranks % (size // part) == 0


def _stages() -> int:
    from vllm.distributed import get_pp_group

    return int(get_pp_group().world_size)


def _ranks() -> int:
    from vllm.distributed import get_tensor_model_parallel_world_size

    return int(get_tensor_model_parallel_world_size())
