"""A plugin with which vLLM serves packed adapters by name.

vLLM calls `register` in each of its processes (entry point ``vllm.general_plugins``). It changes
nothing unless the environment variable ``VBFMT_VLLM_ADAPTERS`` is set, to a folder of packed files
or to a store. Then a request for the model ``alice`` is answered with ``alice.vblora`` of that
folder, or with the adapter that the store has under the name ``alice``. Nothing is expanded on
disk: vLLM's workers keep the packed adapters in memory and compose the factors from them.

How to start a server: docs/guides/serving.md.
"""

from __future__ import annotations

import os

from vbfmt._files.banks import Sources
from vbfmt.converters.vllm.pinned import Pinned
from vbfmt.converters.vllm.resolver import Adapters

PathLike = str | os.PathLike[str]

ADAPTERS = "VBFMT_VLLM_ADAPTERS"
"""The environment variable that names the folder of the adapters, or the store."""


def register() -> None:
    """Let this process of vLLM serve the adapters in the folder or store that `ADAPTERS` names.

    Does nothing if the variable is not set. May be called more than once.

    Raises:
        ConfigError: there is no such folder, or a function of vLLM that the plugin depends on
            differs from that of the tested versions.
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
    """Return the adapters in a store or a folder."""
    from vbfmt.converters.vllm.folder import Folder
    from vbfmt.converters.vllm.stored import Stored
    from vbfmt.store.layout import ROOT

    in_store = path.startswith("s3://") or os.path.isfile(os.path.join(path, ROOT))
    return Stored(path) if in_store else Folder(path)


def lora_path(path: PathLike, *, banks: Sources | None = None) -> str:
    """Return the path to give vLLM for a packed adapter: the file's path and its digest.

    For vLLM's Python interface, in an environment where `ADAPTERS` is set::

        LoRARequest("alice", 1, vbfmt.converters.vllm.lora_path("adapters/alice.vblora"))

    Args:
        path: the file.
        banks: where to look for its bank, as in `vbfmt.load`.

    Raises:
        VbfmtError: the file is damaged or cannot be read.
        ConfigError: its name does not end in ``.vblora``.
    """
    return str(Pinned.of(path, banks=banks))
