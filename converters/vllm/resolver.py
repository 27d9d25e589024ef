"""vLLM's question for a LoRA by name, answered out of a collection of packed adapters."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any, Protocol

from vbfmt.converters.vllm.pinned import Pinned
from vbfmt.errors import VbfmtError

_logger = logging.getLogger("vllm.vbfmt")  # below "vllm", whose handlers it shares

NAME = "vbfmt"
"""Of the resolver, in vLLM's registry."""


class Adapters(Protocol):
    """A collection of packed adapters."""

    def find(self, name: str) -> str | None:
        """Return the path of the adapter of that name, or None."""


class Resolver:
    """A `vllm.lora.resolver.LoRAResolver`."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any | None:
        """Return the `LoRARequest` of the adapter of that name, or None (which clients get as 404).

        An adapter that cannot be read is passed on as it is, for the worker to refuse it, which
        clients get as 400: the answers differ, and so do the log's lines.
        """
        return await asyncio.to_thread(self._resolve, lora_name)

    def _resolve(self, name: str) -> Any | None:
        from vllm.lora.request import LoRARequest

        path = self._adapters.find(name)
        if path is None:
            return None
        try:
            path = str(Pinned.of(path))
        except VbfmtError as error:
            _logger.error("adapter %s: %s", name, error)
        return LoRARequest(lora_name=name, lora_int_id=1, lora_path=path)  # the server numbers it


def install(adapters: Adapters) -> None:
    """Register a resolver of these adapters with vLLM."""
    from vllm.lora.resolver import LoRAResolverRegistry

    if NAME not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver(NAME, Resolver(adapters))
    if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0").strip().lower() not in ("1", "true"):
        _logger.warning(
            "a server asks for no adapter by name unless VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 is set"
        )
