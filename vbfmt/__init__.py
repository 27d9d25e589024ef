"""VB-LoRA adapters as small, verifiable files.

>>> import vbfmt
>>> adapter = vbfmt.load("adapter.vblora")          # verified and mapped
>>> a, b = adapter.factors("model.layers.0.self_attn.q_proj")

`load`, `loads`, `save`, `dumps`, `digest` and `verify` read, write and check packed adapters;
`Adapter`, `Module` and `Tensor` are the content of these files. `pack`, `unpack`, `expand` and
`merge` do the same as the commands with these names. Errors derive from `VbfmtError`. Other formats
are in `vbfmt.converters`, and training is in `vbfmt.torch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "1.0.0"

if TYPE_CHECKING:
    from vbfmt._math.admixture import Rows as Rows
    from vbfmt.adapter import Adapter as Adapter
    from vbfmt.converters.operations.expand import expand as expand
    from vbfmt.converters.operations.merge import merge as merge
    from vbfmt.converters.operations.pack import pack as pack
    from vbfmt.converters.operations.unpack import unpack as unpack
    from vbfmt.errors import VbfmtError as VbfmtError
    from vbfmt.errors import VbfmtWarning as VbfmtWarning
    from vbfmt.module import Module as Module
    from vbfmt.packed import Report as Report
    from vbfmt.packed import digest as digest
    from vbfmt.packed import dumps as dumps
    from vbfmt.packed import load as load
    from vbfmt.packed import loads as loads
    from vbfmt.packed import save as save
    from vbfmt.packed import verify as verify
    from vbfmt.tensors import Tensor as Tensor

_HOMES = {
    "Adapter": "adapter",
    "Rows": "_math.admixture",
    "VbfmtError": "errors",
    "VbfmtWarning": "errors",
    "Module": "module",
    "Report": "packed",
    "digest": "packed",
    "dumps": "packed",
    "load": "packed",
    "loads": "packed",
    "save": "packed",
    "verify": "packed",
    "pack": "converters.operations.pack",
    "unpack": "converters.operations.unpack",
    "expand": "converters.operations.expand",
    "merge": "converters.operations.merge",
    "Tensor": "tensors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    """Import a name when it is first used, so that ``vbfmt --help`` does not import NumPy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vbfmt' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"vbfmt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
