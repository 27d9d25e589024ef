"""Check at start the parts of vLLM that the plugin depends on: no answer is better than a wrong
one."""

from __future__ import annotations

import inspect
import logging
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from vbfmt.errors import ConfigError

_logger = logging.getLogger("vllm.vbfmt")

TESTED = ("0.32.0", "0.33.0")
"""Tested versions of vLLM. The first was tested as a server (`make serving`), and both by running
their LoRA source files (`make runtimes`)."""

_PARAMETERS = {
    "vllm.lora.peft_helper:PEFTHelper.from_local_dir": "lora_path max_position_embeddings",
    "vllm.lora.peft_helper:PEFTHelper.from_dict": "config_dict",
    "vllm.lora.lora_model:LoRAModel.from_local_checkpoint": (
        "lora_dir expected_lora_modules peft_helper lora_model_id device dtype model_vocab_size "
        "weights_mapper skip_prefixes moe_ep_spec"
    ),
    "vllm.lora.lora_model:LoRAModel.from_lora_tensors": (
        "lora_model_id tensors peft_helper device dtype model_vocab_size weights_mapper "
        "skip_prefixes"
    ),
    "vllm.lora.ops.torch_ops.lora_ops:bgmv_shrink": (
        "inputs lora_b_weights output_tensor lora_indices_tensor scaling"
    ),
    "vllm.lora.worker_manager:WorkerLoRAManager._load_adapter": "self lora_request",
    "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin.add_lora": "self lora_request",
    "vllm.v1.executor.abstract:Executor.add_lora": "self lora_request",
    "vllm.lora.resolver:LoRAResolver.resolve_lora": "self base_model_name lora_name",
    "vllm.lora.resolver:LoRAResolverRegistry.register_resolver": "resolver_name resolver",
}
"""Function that is wrapped or called → names of its parameters in all `TESTED` versions."""


def require() -> None:
    """Check the functions of vLLM that the plugin depends on. Log a warning for untested versions.

    Raises:
        ConfigError: a function has changed.
    """
    import vllm

    version = str(vllm.__version__)
    if version.partition("+")[0] not in TESTED:
        _logger.warning(
            "vbfmt was tested with vLLM %s, but not with %s; before you rely on its answers, "
            "compare them with those of a merged model",
            " and ".join(TESTED),
            version,
        )
    for function, parameters in _PARAMETERS.items():
        found = _parameters_of(function)
        if found != parameters:
            raise _changed(function.replace(":", "."), found, parameters, version)
    if not _caches_by_path():
        raise _changed(_KEYS, "no key by path", "cached results by a LoRA's name and path", version)


def _parameters_of(function: str) -> str:
    module, _, name = function.partition(":")
    try:
        value: Any = import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
        return " ".join(inspect.signature(value).parameters)
    except (ImportError, AttributeError):
        return "no such function"


_KEYS = "vllm.v1.core.kv_cache_utils._gen_lora_extra_hash_keys"


def _caches_by_path() -> bool:
    """Return whether vLLM's cache distinguishes LoRAs with the same name by their paths."""
    try:
        from vllm.lora.request import LoRARequest
        from vllm.v1.core.kv_cache_utils import _gen_lora_extra_hash_keys as keys_of
    except ImportError:
        return False
    keys = [
        keys_of(SimpleNamespace(lora_request=LoRARequest("name", 1, path)))
        for path in ("/a.vblora@sha256:0", "/a.vblora@sha256:1")
    ]
    return bool(keys[0] != keys[1])


def _changed(function: str, found: str, expected: str, version: str) -> ConfigError:
    return ConfigError(
        f"this plugin does not support vLLM {version}",
        part=function,
        found=found,
        expected=expected,
        advice=f"use vLLM {' or '.join(TESTED)}, or serve expanded folders: vbfmt expand",
    )
