"""What a model's state dict says: the same, whichever adapter is active.

While an adapter is active its stand-ins are in the place of the base's tensors, and PyTorch names
tensors by their places. Here every tensor goes by whose it is: the base's under the name that it
has in the base, the adapter's under the adapter's. A state dict of one moment can be loaded in any
other. (Not that of a part of the model: parts know nothing of adapters.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vbfmt.errors import ModelError
from vbfmt.torch.stand_ins import owner_of, path_of

if TYPE_CHECKING:
    from vbfmt.torch.adapters import VBLoRA


def keep_names(root: nn.Module) -> list[RemovableHandle]:
    """Hooks of a model that has adapters, by which its state dict goes by what is whose."""
    model: Any = root  # PyTorch has no types for these
    return [
        model.register_state_dict_pre_hook(_require_unmerged),
        model.register_state_dict_post_hook(_name_by_owner),
        model.register_load_state_dict_pre_hook(_take_to_places),
    ]


# Functions and not methods of VBLoRA: PyTorch sets an attribute on them.
def _require_unmerged(root: nn.Module, *_: Any) -> None:
    """A merged weight under the base's name would have the update twice when it is loaded."""
    _adapters(root).require_unmerged(
        "call unmerge(model) first; for merged weights in files there is: vbfmt merge"
    )


def _name_by_owner(root: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for base, own, _, _ in _exchanged(root, prefix):
        if base in state and own in state:
            state[base], state[own] = state[own], state[base]


def _take_to_places(
    root: nn.Module,
    state: dict[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    *_: Any,
) -> None:
    _require_unmerged(root)
    _require_same_k(root, state, prefix)
    for base, own, standing, waiting in _exchanged(root, prefix):
        given = {key: state.pop(key) for key in (base, own) if key in state}
        # The base's tensor waits in the adapter, and the adapter's stands in the base.
        for key, place, tensor in ((base, own, waiting), (own, base, standing)):
            state[place] = given.get(key, tensor)  # without one, the tensor stays as it is
            if key not in given and strict:
                missing.append(key)


def _require_same_k(root: nn.Module, state: dict[str, Any], prefix: str) -> None:
    """Refuse logits of another k: no tensor's shape shows it, and the outputs would be others."""
    adapters = _adapters(root)
    for name in adapters.adapters:
        own = adapters.adapter(name).get_extra_state()
        given = state.get(f"{prefix}vblora.adapters.{name}._extra_state", own)
        if int(given) != int(own):
            raise ModelError(
                "the state dict is of an adapter with another k",
                part=f"adapter {name}",
                found=int(given),
                expected=int(own),
                advice="inject an adapter with that topk",
            )


def _exchanged(root: nn.Module, prefix: str) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """The base's key, the adapter's key, and the tensors in these places now: the active adapter's
    and the base's."""
    adapters = _adapters(root)
    if adapters.active is None:
        return
    stand_ins = adapters.adapter().stand_ins
    for name, key in stand_ins.keys().items():
        owner, leaf = owner_of(root, name)
        yield (
            prefix + path_of(root, name),
            f"{prefix}vblora.adapters.{adapters.active}.stand_ins.{key}",
            getattr(owner, leaf),
            getattr(stand_ins, key),
        )


def _adapters(root: nn.Module) -> VBLoRA:
    return cast("VBLoRA", root._modules["vblora"])
