"""Packed adapters in vLLM, as a plugin: found by name, read by vLLM's workers as they are.

vLLM calls `register` in each of its processes (entry point ``vllm.general_plugins``). Without the
environment variable ``VBFMT_VLLM_ADAPTERS``, the folder of the adapters, nothing is changed. With
it, a request for the model ``alice`` is answered with ``alice.vblora`` of that folder. Nothing is
expanded on disk: the workers compose the factors from the packed bytes, which they keep.

How to start a server: docs/guides/serving.md.
"""

from __future__ import annotations

import os

from vbfmt.converters.vllm.pinned import Pinned

PathLike = str | os.PathLike[str]

ADAPTERS = "VBFMT_VLLM_ADAPTERS"
"""The environment variable that names the folder of the adapters."""


def register() -> None:
    """Let this process of vLLM serve the adapters in the folder that `ADAPTERS` names.

    Does nothing if the variable is not set. May be called more than once.

    Raises:
        ConfigError: there is no such folder, or a function of vLLM that this depends on is not the
            one of the tested versions.
    """
    folder = os.environ.get(ADAPTERS)
    if not folder:
        return
    from vbfmt.converters.vllm import internals, no_adapter, resolver, worker
    from vbfmt.converters.vllm.folder import Folder

    adapters = Folder(folder)
    internals.require()
    no_adapter.install()
    worker.install()
    resolver.install(adapters)


def lora_path(path: PathLike) -> str:
    """Return what to give vLLM as the path of a packed adapter: the file and its digest.

    For vLLM in Python, in an environment where `ADAPTERS` is set::

        LoRARequest("alice", 1, vbfmt.converters.vllm.lora_path("adapters/alice.vblora"))

    Raises:
        VbfmtError: the file is damaged or cannot be read.
        ConfigError: its name does not end in ``.vblora``.
    """
    return str(Pinned.of(path))
