"""A plugin that lets vLLM serve packed adapters by name.

vLLM calls `register` in each of its processes (entry point ``vllm.general_plugins``). It does
nothing unless the environment variable ``VBFMT_VLLM_ADAPTERS`` is set to a folder of packed files
or to a store. Then a request for the model ``alice`` uses ``alice.vblora`` in that folder, or the
adapter with the name ``alice`` in the store. No expanded adapter is written to disk: vLLM's workers
keep the packed adapters in memory and compose the factors from them.

docs/guides/serving.md shows how to start a server.
"""

from __future__ import annotations

import os

from vbfmt._files import PathLike
from vbfmt._files.banks import Sources
from vbfmt.converters.vllm.pinned import Pinned
from vbfmt.converters.vllm.resolver import Adapters, Folder, Stored

ADAPTERS = "VBFMT_VLLM_ADAPTERS"
"""The environment variable with the path of the folder or store of adapters."""


def register() -> None:
    """Let this vLLM process serve the adapters in the folder or store that `ADAPTERS` names.

    Do nothing if the variable is not set. The function may be called more than once.

    Raises:
        ConfigError: there is no such folder, or a function of vLLM that the plugin depends on
            differs from the tested versions.
    """
    path = os.environ.get(ADAPTERS)
    if not path:
        return
    from vbfmt.converters.vllm import internals, no_adapter, refused, resolver, worker

    adapters = _open(path)
    internals.require()
    no_adapter.install()
    worker.install(adapters.banks)
    refused.install()
    resolver.install(adapters)


def _open(path: str) -> Adapters:
    """Open a store or a folder of adapters."""
    from vbfmt.store.layout import ROOT

    in_store = path.startswith("s3://") or os.path.isfile(os.path.join(path, ROOT))
    return Stored(path) if in_store else Folder(path)


def lora_path(path: PathLike, *, banks: Sources | None = None) -> str:
    """Return the path to give vLLM for a packed adapter: the file's path with its digest.

    Use it with vLLM's Python interface, with `ADAPTERS` set in the environment::

        LoRARequest("alice", 1, vbfmt.converters.vllm.lora_path("adapters/alice.vblora"))

    Args:
        path: path of the packed file.
        banks: where to search for its bank, as in `vbfmt.load`.

    Raises:
        VbfmtError: the file is damaged or cannot be read.
        ConfigError: the file's name does not end in ``.vblora``.
    """
    return str(Pinned.of(path, banks=banks))
