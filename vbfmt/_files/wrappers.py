"""Remove the components that PyTorch's wrappers add to module names.

``torch.compile`` adds ``_orig_mod`` to the names of a module's tensors, activation checkpointing
adds ``_checkpoint_wrapped_module``, and FSDP adds ``_fsdp_wrapped_module``. The component is at the
start of a name, or in the middle if only some layers are wrapped. DDP adds ``module`` at the start.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

WRAPPERS = frozenset(
    ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module")
)
_PARALLEL = "module."


def without_wrappers(name: str) -> str:
    """Return the name without the components that wrappers add, wherever they are."""
    if "_mod" not in name and "_wrapped" not in name:
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def parallel_prefix(names: Collection[str]) -> str:
    """Return ``module.``, repeated for each level, if all names begin with it, as with DDP."""
    prefix = ""
    while names and all(name.startswith(f"{prefix}{_PARALLEL}") for name in names):
        prefix += _PARALLEL
    return prefix


def by_plain_name(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names by their form without wrappers."""
    result: dict[str, list[str]] = {}
    for name in names:
        result.setdefault(without_wrappers(name), []).append(name)
    return result
