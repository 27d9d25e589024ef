"""Find modules inside wrappers by their plain names.

``torch.compile`` and activation checkpointing may wrap some of a model's layers, before or after an
adapter is added. Adapters refer to every module by its plain name, which has no wrappers in it.
"""

from __future__ import annotations

from torch import nn

from vbfmt._files.wrappers import WRAPPERS


def real_name(root: nn.Module, name: str) -> str:
    """Return a module's name in the model, with its wrappers, from its plain name.

    Raises:
        AttributeError: there is no such module.
    """
    module, parts = _within(root)
    for part in name.split(".") if name else ():
        inner = module._modules.get(part)
        if inner is None:
            raise AttributeError(f"no module {name!r}")
        module, wrappers = _within(inner)
        parts += [part, *wrappers]
    return ".".join(parts)


def submodule(root: nn.Module, name: str) -> nn.Module:
    """Return the module with a plain name, without the wrappers around it.

    Raises:
        AttributeError: there is no such module.
    """
    return root.get_submodule(real_name(root, name))


def inner_of(module: nn.Module) -> str | None:
    """Return the attribute in which a wrapper holds its module; None for other modules."""
    return next((name for name in module._modules if name in WRAPPERS), None)


def _within(module: nn.Module) -> tuple[nn.Module, list[str]]:
    names = []
    while (name := inner_of(module)) is not None:
        names.append(name)
        module = module._modules[name] or nn.Module()
    return module, names
