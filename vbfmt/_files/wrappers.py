"""Names of modules as they are without the modules that PyTorch wraps around them.

``torch.compile`` puts ``_orig_mod`` into the names of a module's tensors, activation checkpointing
``_checkpoint_wrapped_module``, FSDP ``_fsdp_wrapped_module``: in front, or anywhere in the middle
where only some layers are wrapped. DDP puts ``module`` in front.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

WRAPPERS = frozenset(
    ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module")
)
_PARALLEL = "module."


def without_wrappers(name: str) -> str:
    """The name without the components that wrappers add, wherever they stand."""
    if "_mod" not in name and "_wrapped" not in name:
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def parallel_prefix(names: Collection[str]) -> str:
    """``module.`` (once for each level) if all names begin with it, as in DDP's state dict."""
    prefix = ""
    while names and all(name.startswith(f"{prefix}{_PARALLEL}") for name in names):
        prefix += _PARALLEL
    return prefix


def by_plain_name(names: Iterable[str]) -> dict[str, list[str]]:
    """The names with wrappers, by the name without them."""
    result: dict[str, list[str]] = {}
    for name in names:
        result.setdefault(without_wrappers(name), []).append(name)
    return result
