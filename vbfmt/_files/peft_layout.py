"""The keys and configs of PEFT's VB-LoRA checkpoints.

`vbfmt.torch` writes such checkpoints, `vbfmt.converters.peft` reads and writes them (PEFT 0.13 to
0.21: peft/tuners/vblora/model.py, peft/utils/save_and_load.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

from vbfmt.adapter import Adapter
from vbfmt.errors import SourceError, TargetError
from vbfmt.module import Module
from vbfmt.tensors import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
BANK = "base_model.vblora_vector_bank"

_MODULES_TO_SAVE = re.compile(
    r"\.modules_to_save(?:\.(?P<adapter>[^.]+))?(?=\.(?:weight|bias)$|\.)"
)
_SETS = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform")
_ABOUT_THE_FILE = ("save_only_topk_weights", "peft_version")
NAMES_CODE = "auto_mapping"
"""The key that names code for PEFT's AutoPeftModel to import. A packed file never keeps it."""

_ABOUT_THE_BASE = ("base_model_name_or_path", "revision")


class WithExtras(Protocol):
    """An adapter or a sum of adapters, with other trained tensors."""

    @property
    def modules(self) -> tuple[Module, ...]:
        """The adapted modules."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Other trained tensors by name."""

    @property
    def config(self) -> str | None:
        """The source's adapter config as JSON text."""


def key_of_logits(module: str, factor: str) -> str:
    """Return the key of a module's logits: (r, in/b, h) for factor A, (out/b, r, h) for B."""
    return f"{PREFIX}{module}.vblora_logits_{factor}"


def key_of_tensor(name: str, modules: Collection[str]) -> str:
    """Return the key of a tensor, given its name in the base model.

    The bias of an adapted layer is in ``base_layer``, the layer that PEFT has wrapped.
    """
    owner, _, leaf = name.rpartition(".")
    inner = f"{owner}.base_layer.{leaf}" if owner in modules else name
    return f"{PREFIX}{inner}"


def tensors_by_key(adapter: WithExtras) -> dict[str, Tensor]:
    """Return the other trained tensors, by their keys in PEFT.

    Raises:
        TargetError: two tensors have the same key.
    """
    modules = {module.name for module in adapter.modules}
    found: dict[str, Tensor] = {}
    for name, tensor in adapter.tensors.items():
        key = key_of_tensor(name, modules)
        if key in found:
            raise TargetError("two trained tensors have the same key", part=key)
        found[key] = tensor
    return found


def names_of(others: Iterable[str], prefix: str, modules: Collection[str]) -> dict[str, str]:
    """Return the key of each tensor that is neither bank nor logits, by its name in the base model.

    The names do not contain the components that PEFT's wrappers add.

    Args:
        others: keys of these tensors.
        prefix: common prefix of all keys.
        modules: names of the adapted layers.

    Raises:
        SourceError: two keys have the same name in the base model.
    """
    result: dict[str, str] = {}
    # With bias="all" PEFT writes the bias of a module in modules_to_save twice, plain and wrapped,
    # and reads the plain one.
    for key in sorted(others, key=lambda key: bool(_MODULES_TO_SAVE.search(key))):
        name = key.removeprefix(prefix)
        if ".original_module." in name:
            continue  # the untrained copy of a module in modules_to_save
        wrapped = _MODULES_TO_SAVE.search(name) is not None
        name = _MODULES_TO_SAVE.sub("", name)
        owner, _, leaf = name.rpartition(".")
        unwrapped = owner.removesuffix(".base_layer")
        if unwrapped in modules:
            name = f"{unwrapped}.{leaf}"
        if name not in result:
            result[name] = key
        elif not wrapped:
            raise SourceError("two tensors for one name", part=name, found=f"{result[name]}, {key}")
    return result


def config_of(adapter: WithExtras) -> dict[str, Any]:
    """Return the config of the source, as the adapter keeps it. It is empty if the adapter has
    none."""
    config: dict[str, Any] = json.loads(adapter.config) if adapter.config else {}
    return config


def base_of(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the base model's name and revision in a config, with None for what it lacks."""
    name, revision = (config.get(key) for key in _ABOUT_THE_BASE)
    return _text(name), _text(revision)


def canonical(config: Mapping[str, Any], adapter: Adapter) -> str | None:
    """Return the part of a config that the packed form keeps, as canonical text, or None if empty.

    The packed form does not keep settings that the adapter itself has (sizes, rank, base model),
    settings about the source's file, names of code, and settings in `implied`. So unpacking and
    packing again changes nothing. It does not keep nulls either, because they are PEFT's defaults,
    and older versions of PEFT refuse keys that they do not know. Lists that PEFT treats as sets are
    sorted.
    """
    written_anyway = implied(adapter)
    left_out = {NAMES_CODE, *_ABOUT_THE_FILE, *_ABOUT_THE_BASE, *sizes(adapter, 0)}
    kept = {}
    for key, value in config.items():
        plain = sorted(value, key=str) if key in _SETS and isinstance(value, list) else value
        if key in left_out or (plain is None and key not in written_anyway):
            continue
        if key not in written_anyway or written_anyway[key] != plain:
            kept[key] = plain
    return _as_text(kept) if kept else None


def implied(adapter: Adapter) -> dict[str, Any]:
    """Return the settings that are added if the source's config does not have them."""
    return {
        **about_extras(adapter, "vblora_only"),
        "inference_mode": True,
        "task_type": None,
        "target_modules": [module.name for module in adapter],
    }


def sizes(adapter: Adapter, rank: int) -> dict[str, Any]:
    """Return the settings that follow from the adapter, whatever the source's config says."""
    return {
        "peft_type": "VBLORA",
        "r": rank,
        "num_vectors": adapter.h,
        "vector_length": adapter.b,
        "topk": adapter.k,
        "fan_in_fan_out": any(module.fan_in_fan_out for module in adapter),
    }


def about_extras(adapter: WithExtras, only: str) -> dict[str, Any]:
    """Return the `bias` and `modules_to_save` that make PEFT expect the adapter's other tensors.

    A ``<name>.bias`` without ``<name>.weight`` is a trained bias. Every other tensor belongs to a
    module in `modules_to_save`.

    Args:
        only: PEFT's value of `bias` if only adapted layers have trained biases.
    """
    owners = {name.rpartition(".")[0] for name in adapter.tensors}
    biases = {
        owner
        for owner in owners
        if f"{owner}.bias" in adapter.tensors and f"{owner}.weight" not in adapter.tensors
    }
    named = config_of(adapter).get("modules_to_save")
    saved = sorted(owners - biases)
    bias = "none" if not biases else only if biases <= {m.name for m in adapter.modules} else "all"
    return {"bias": bias, "modules_to_save": named or saved or None}


def _as_text(config: Mapping[str, Any]) -> str:
    text = json.dumps(
        config, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
    # A lone surrogate can be escaped in JSON, but UTF-8 has no form of it.
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
