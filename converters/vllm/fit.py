"""Check that vLLM applies every module of a LoRA, to a layer of the right size.

vLLM ignores modules that its model does not have. It copies factors of a smaller size into the
corner of a larger buffer. Both silently give wrong answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from vbfmt._files import PathLike
from vbfmt.adapter import Adapter
from vbfmt.errors import ModelError, few

Size: TypeAlias = tuple[int, int]
"""(in_features, out_features) of a layer."""


def require_no_larger(adapter: Adapter, manager: Any, file: PathLike) -> None:
    """Check that an adapter's layers have no more features in total than the model's layers.

    A small packed file can describe gigabytes of factors, and a worker that runs out of memory
    stops the engine. So this check must come before any factor is composed. vLLM has already
    checked the LoRA rank.

    Args:
        adapter: the packed adapter.
        manager: vLLM's `LoRAModelManager`.
        file: the adapter's file, for messages.

    Raises:
        ModelError: the adapter's layers have more features than the model's.
    """
    found = sum(module.in_features + module.out_features for module in adapter.modules)
    there = sum(sum(size) for _, size in _layers(manager) if size)
    # The sizes of layers in other processes are unknown. For each, assume the size of all layers
    # in this process together.
    there *= 1 + sum(1 for _ in _on_other_ranks(manager.model))
    if found > there:
        raise ModelError(
            "the adapter was trained on a larger model",
            file=file,
            found=f"{found} features of all layers together",
            expected=f"at most {there}",
            advice="serve the model that the adapter was trained on",
        )


def require(loaded: Any, manager: Any, file: PathLike) -> None:
    """Check that the model has every module of a LoRA, in the same size.

    Args:
        loaded: vLLM's `LoRAModel`.
        manager: vLLM's `LoRAModelManager`.
        file: the adapter's file, for messages.

    Raises:
        ModelError: the model lacks a module, has it in another size, or its size is unknown.
    """
    layers = dict(_layers(manager))
    elsewhere = tuple(f"{name}." for name in _on_other_ranks(manager.model))
    missing = []
    for name, weights in loaded.loras.items():
        known = name if name in layers or not manager.is_pooling_model else f"model.{name}"
        if known in layers:
            _require_size(name, weights, layers[known], file)
        elif not f"{name}.".startswith(elsewhere or ("\0",)):
            missing.append(name)
    if missing:
        raise ModelError(
            "the served model does not have these modules, or vLLM does not adapt them",
            file=file,
            found=few(sorted(missing)),
            expected=f"such as {few(sorted(layers))}",
            advice="serve the model that the adapter was trained on",
        )


def _layers(manager: Any) -> Iterator[tuple[str, Size | None]]:
    """Yield the name and size of each module that an adapter may have. An unknown size is None.

    A fused layer (``qkv_proj``) is listed under the names of its parts.
    """
    packed: Mapping[str, list[str]] = manager.packed_modules
    for name, module in manager.modules.items():
        parts = packed.get(name, [name])
        sizes = _sizes(module)
        if len(parts) == 1 and sizes:
            sizes = [(sizes[0][0], sum(out for _, out in sizes))]
        for number, part in enumerate(parts):
            yield part, sizes[number] if len(sizes) == len(parts) else None


def _sizes(module: Any) -> list[Size]:
    """Return the sizes of a layer's parts, summed over all ranks, or [] if they are unknown."""
    base = module.base_layer
    if hasattr(base, "vocab_size") and hasattr(module, "hidden_size"):  # the output layer
        return [(module.hidden_size, base.vocab_size)]
    if not hasattr(base, "input_size"):  # an embedding, experts
        return []
    outputs = getattr(base, "output_sizes", None) or [base.output_size]
    if hasattr(base, "total_num_kv_heads"):  # output_sizes counts a head once for each rank
        keys, values = base.head_size, base.v_head_size
        heads = base.total_num_kv_heads
        outputs = [base.total_num_heads * keys, heads * keys, heads * values, *outputs[3:]]
    return [(base.input_size, out) for out in outputs]


def _on_other_ranks(model: Any) -> Iterator[str]:
    """Yield the names of the layers that are on other ranks (pipeline parallelism)."""
    from vllm.model_executor.models.utils import PPMissingLayer

    for name, module in model.named_modules():
        if isinstance(module, PPMissingLayer):
            yield name


def _require_size(name: str, weights: Any, size: Size | None, file: PathLike) -> None:
    if size is None:
        raise ModelError(
            "packed adapters cannot be served for this kind of layer",
            file=file,
            part=name,
            advice="expand the adapter and serve the folder: vbfmt expand",
        )
    found = (weights.lora_a.shape[1], weights.lora_b.shape[0])
    if found != size:
        raise ModelError(
            "the adapter was trained on a model of another size",
            file=file,
            part=name,
            found=f"{found[0]} → {found[1]} features",
            expected=f"{size[0]} → {size[1]}",
            advice="serve the model that the adapter was trained on",
        )
