"""Find packed adapters by name, in a folder or a store, and give them to vLLM."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any, Protocol

from vbfmt._files import PathLike
from vbfmt._files.banks import Sources
from vbfmt.converters.vllm.pinned import SUFFIX, Pinned
from vbfmt.errors import ConfigError, VbfmtError

_logger = logging.getLogger("vllm.vbfmt")  # below "vllm", whose handlers it shares

NAME = "vbfmt"
"""The resolver's name in vLLM's registry."""

_LONGEST = 255 - len(SUFFIX)
"""Largest length of a name in bytes. File systems allow 255, including the suffix."""


class Adapters(Protocol):
    """A collection of packed adapters."""

    @property
    def banks(self) -> Sources | None:
        """Where to search for external banks, as in `vbfmt.load`."""

    def find(self, name: str) -> str | None:
        """Return the path of the adapter with this name, or None if there is none.

        The path includes the digest, unless the file cannot be read.
        """


class Folder:
    """The packed adapters in a folder, not in its subfolders.

    External banks are searched for in the folder and in its subfolder ``banks``.

    Raises:
        ConfigError: there is no such folder.
    """

    banks = None

    def __init__(self, path: PathLike) -> None:
        self._path = os.path.abspath(path)
        self._real = os.path.realpath(path)
        if not os.path.isdir(self._real):
            raise ConfigError(
                "no folder of adapters",
                found=os.fspath(path),
                expected="the path of a folder with .vblora files",
            )

    def find(self, name: str) -> str | None:
        """Return the path with digest of the adapter with this name, or None if there is none.

        Names come from clients and must not give access to other files. So a name must be one
        component of a path, and a link that leads out of the folder is not followed. If the file
        cannot be read, the path has no digest. The worker refuses such a path, so the client learns
        that the adapter exists but cannot be used.
        """
        if not _is_component(name):
            return None
        path = os.path.join(self._path, name + SUFFIX)
        real = os.path.realpath(path)
        if os.path.commonpath([real, self._real]) != self._real or not os.path.isfile(real):
            return None
        try:
            return str(Pinned.of(path))
        except VbfmtError as error:
            _logger.error("adapter %s: %s", name, error)
            return path


class Stored:
    """The named adapters of a store. Digests are not accepted as names.

    Adapters need no lease against garbage collection. A worker reads an adapter immediately and
    keeps it in memory, and the store keeps an adapter for a day after its name was changed.

    Raises:
        StoreError: there is no store at this path.
    """

    def __init__(self, path: PathLike) -> None:
        from vbfmt.store import Store

        self._store = Store(path)
        self.banks = self._store

    def find(self, name: str) -> str | None:
        """Return the path with digest of the adapter with this name, or None if there is none.

        Raises:
            VbfmtError: the name's record is damaged, or the adapter is not in the store.
        """
        digest = self._store.find(name)
        if digest is None:
            return None
        return str(Pinned(os.path.abspath(self._store.path(digest)), digest))


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


def _is_component(name: str) -> bool:
    """Return whether `name` is one path component and does not begin with a dot."""
    if not name or name.startswith(".") or not name.isprintable():
        return False
    return not set(name) & {"/", "\\"} and len(name.encode()) <= _LONGEST
