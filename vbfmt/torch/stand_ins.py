"""An adapter's own versions of tensors of the base: biases and heads.

While an adapter is active, its tensors are in the model and the base's are kept here; otherwise it
is the other way round. So the base is unchanged after the adapter is switched off or removed, and a
forward pass needs no lookup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from torch import Tensor, nn

from vbfmt.errors import ModelError
from vbfmt.torch.linear import VBLoRALinear
from vbfmt.torch.tensors import cast_like
from vbfmt.torch.wrapped import real_name, submodule


class StandIns(nn.Module):
    """An adapter's own versions of tensors of the model, by their names in the base."""

    def __init__(self, root: nn.Module, tensors: Mapping[str, Tensor], *, trained: bool) -> None:
        super().__init__()
        self.names = list(tensors)
        self.standing = False
        for name, tensor in tensors.items():
            if isinstance(tensor_of(root, name), nn.Parameter):
                self.register_parameter(_key(name), nn.Parameter(tensor, requires_grad=trained))
            else:
                self.register_buffer(_key(name), tensor)

    @classmethod
    def trainable(cls, root: nn.Module, names: Iterable[str]) -> StandIns:
        """Return trainable copies of the model's tensors."""
        copies = {name: tensor_of(root, name).detach().clone() for name in names}
        return cls(root, copies, trained=True)

    @classmethod
    def fixed(cls, root: nn.Module, tensors: Mapping[str, Tensor]) -> StandIns:
        """Return stand-ins with the given tensors, on the device and in the dtype of those they
        replace.

        Raises:
            ModelError: that dtype cannot represent the values of a tensor.
        """
        fitting = {
            name: cast_like(tensor, tensor_of(root, name), name) for name, tensor in tensors.items()
        }
        return cls(root, fitting, trained=False)

    def require_originals(self, root: nn.Module) -> None:
        """Check that the model still has every tensor to be exchanged, in the same shape.

        Raises:
            ModelError: a tensor is missing or has another shape.
        """
        for name in self.names:
            own = tuple(getattr(self, _key(name)).shape)
            found = shape_of(root, name)
            if found != own:
                raise ModelError(
                    "a fully trained module was replaced after inject",
                    part=name,
                    found=found,
                    expected=own,
                    advice="restore it, or create the model with the new module before inject",
                )

    def swap(self, root: nn.Module) -> None:
        """Exchange each tensor here with its counterpart in the model."""
        for name in self.names:
            owner, leaf = owner_of(root, name)
            for mine, theirs in (
                (self._parameters, owner._parameters),
                (self._buffers, owner._buffers),
            ):
                if leaf in theirs:
                    mine[_key(name)], theirs[leaf] = theirs[leaf], mine[_key(name)]  # type: ignore[assignment]
        self.standing = not self.standing

    def tensors(self, root: nn.Module) -> dict[str, Tensor]:
        """Return the adapter's own tensors, by name, wherever they are now."""
        return {
            name: tensor_of(root, name) if self.standing else getattr(self, _key(name))
            for name in self.names
        }

    def both(self, root: nn.Module) -> dict[str, Tensor]:
        """Return the adapter's own tensors and the base's tensors that they replace."""
        waiting = {key: cast(Tensor, getattr(self, key)) for key in self.keys().values()}
        return waiting | {name: tensor_of(root, name) for name in self.names}

    def keys(self) -> dict[str, str]:
        """Return each tensor's name here, by its name in the base."""
        return {name: _key(name) for name in self.names}

    def parameters_of(self, root: nn.Module) -> list[nn.Parameter]:
        """Return the trainable tensors."""
        return [t for t in self.tensors(root).values() if isinstance(t, nn.Parameter)]


def owner_of(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that contains a tensor of the base, and the tensor's name in that module.

    Raises:
        AttributeError: there is no such module or tensor.
    """
    path, _, leaf = name.rpartition(".")
    owner = submodule(root, path)
    if isinstance(owner, VBLoRALinear):
        owner = owner.base_layer
    if owner._parameters.get(leaf) is None and owner._buffers.get(leaf) is None:
        raise AttributeError(f"no tensor {name!r}")
    return owner, leaf


def tensor_of(root: nn.Module, name: str) -> Tensor:
    """Return a tensor of the base.

    Raises:
        AttributeError: there is no such module or tensor.
    """
    tensor: Tensor = getattr(*owner_of(root, name))
    return tensor


def shape_of(root: nn.Module, name: str) -> tuple[int, ...] | None:
    """Return the shape of a tensor of the base, or None if the base lacks it."""
    try:
        return tuple(tensor_of(root, name).shape)
    except AttributeError:
        return None


def path_of(root: nn.Module, name: str) -> str:
    """Return the current name in the model of a tensor of the base. It may be in an adapted
    layer."""
    path, _, leaf = name.rpartition(".")
    inner = ".base_layer" if isinstance(submodule(root, path), VBLoRALinear) else ""
    real = real_name(root, path)
    return f"{real}{inner}.{leaf}" if real else leaf


def names_to_train(
    modules: Mapping[str, nn.Module], *, whole: Iterable[str], bias: str, targets: Iterable[str]
) -> list[str]:
    """Return the names of all tensors in the modules `whole`, and of the biases that `bias`
    selects.

    Args:
        modules: the base's modules by name.
        targets: the names of the adapted ones.
    """
    biases_of = {"none": [], "vblora_only": list(targets), "all": list(modules)}[bias]
    names: dict[str, None] = {}
    for saved in whole:
        for module, content in modules.items():
            if module == saved or module.startswith(f"{saved}."):
                names.update((f"{module}.{leaf}", None) for leaf in _own_state(content))
    for module in biases_of:
        if modules[module]._parameters.get("bias") is not None:
            names[f"{module}.bias" if module else "bias"] = None
    return list(names)


def _own_state(module: nn.Module) -> list[str]:
    """Return the names of the tensors that a module itself has in a state dict."""
    parameters = [leaf for leaf, tensor in module._parameters.items() if tensor is not None]
    return parameters + [
        leaf
        for leaf, tensor in module._buffers.items()
        if tensor is not None and leaf not in module._non_persistent_buffers_set
    ]


def _key(name: str) -> str:
    return name.replace(".", "/")
