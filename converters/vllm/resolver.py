"""The resolver that gives vLLM packed adapters by name."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any, Protocol

from vbfmt._files.banks import Sources
from vbfmt.errors import VbfmtError

_logger = logging.getLogger("vllm.vbfmt")  # below "vllm", whose handlers it shares

NAME = "vbfmt"
"""The resolver's name in vLLM's registry."""


class Adapters(Protocol):
    """A collection of packed adapters."""

    @property
    def banks(self) -> Sources | None:
        """Where to search for external banks, as in `vbfmt.load`."""

    def find(self, name: str) -> str | None:
        """Return the path of the adapter with this name, or None if there is none.

        The path includes the digest, unless the file cannot be read.
        """


class Resolver:
    """A `vllm.lora.resolver.LoRAResolver`."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any | None:
        """Return a `LoRARequest` for the adapter with this name.

        If there is none, return None, which vLLM answers with 404.
        """
        from vllm.lora.request import LoRARequest

        try:
            path = await asyncio.to_thread(self._adapters.find, lora_name)
        except VbfmtError as error:
            _logger.error("adapter %s: %s", lora_name, error)
            return None
        if path is None:
            return None
        # vLLM replaces this id with its own.
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=path)


def install(adapters: Adapters) -> None:
    """Register a resolver for these adapters with vLLM."""
    from vllm.lora.resolver import LoRAResolverRegistry

    if NAME not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver(NAME, Resolver(adapters))
    if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0").strip().lower() not in ("1", "true"):
        _logger.warning(
            "vLLM's server finds no adapter by name unless VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 is "
            "set"
        )
