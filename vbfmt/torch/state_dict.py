"""Save a model's state dict while one adapter is active, and load it while another is.

While an adapter is active, its own heads and biases are in the base's modules, and the base's are
kept in the adapter (`StandIns`). The keys of a state dict are the names that the tensors have at
that moment, as in `named_parameters`, so that filters by ``requires_grad`` find the trainable ones.
Each adapter's ``_extra_state`` records whether its tensors were in the base's modules. Loading
copies every tensor to where it belongs now. A model's `load_state_dict` also accepts the state dict
of its active adapter alone (`get_adapter_state_dict`), which the Trainer uses to resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from vbfmt._files.wrappers import without_wrappers
from vbfmt.errors import ModelError
from vbfmt.torch.adapter_state import is_adapter_state, set_adapter_state_dict
from vbfmt.torch.adapters import VBLoRA, adapters_of
from vbfmt.torch.linear import VBLoRALinear
from vbfmt.torch.stand_ins import path_of


def order_state_dicts(root: nn.Module) -> list[RemovableHandle]:
    """Register the hooks of a model with adapters, and return their handles."""
    model: Any = root  # PyTorch has no types for these
    return [
        model.register_state_dict_pre_hook(_require_unmerged),
        model.register_load_state_dict_pre_hook(_prepare_to_load),
        model.register_load_state_dict_post_hook(_expect_no_base),
    ]


def get_base_state_dict(model: nn.Module) -> dict[str, Any]:
    """Return the base's state dict, as if the model had no adapter. Memory is shared.

    Raises:
        ModelError: the model has no adapter, or one is merged.
    """
    adapters = adapters_of(model)
    adapters.require_unmerged()
    modules = adapters.root.named_modules(remove_duplicate=False)
    wrapped = {f"{name}." for name, module in modules if isinstance(module, VBLoRALinear)}
    state = {}
    for key, value in adapters.root.state_dict().items():
        base = _name_in_base(key, wrapped)
        if base is not None:
            state[base] = value
    if adapters.active is not None:
        stand_ins = adapters.adapter().stand_ins
        for name, own in stand_ins.keys().items():
            state[name] = getattr(stand_ins, own).detach()
    return state


def _name_in_base(key: str, wrapped: Set[str]) -> str | None:
    """Return the base's name of a tensor of the model; None for an adapter's tensor."""
    if key.startswith("vblora."):
        return None
    for part in (".base_layer.", ".updates."):
        owner, found, leaf = key.partition(part)
        if found and f"{owner}." in wrapped:
            return without_wrappers(f"{owner}.{leaf}") if part == ".base_layer." else None
    return without_wrappers(key)


# These are functions and not methods of VBLoRA, because PyTorch sets an attribute on them.
def _require_unmerged(root: nn.Module, *_: Any) -> None:
    """Refuse merged adapters: a merged weight, once loaded, would get the update a second time."""
    adapters_of(root).require_unmerged(
        "call unmerge(model) first; for merged weights in files: vbfmt merge"
    )


def _prepare_to_load(root: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Check a state dict, and rename its tensors to their current names in this model."""
    _require_unmerged(root)
    adapters = adapters_of(root)
    adapters.loading_adapter_only = not prefix and is_adapter_state(state)
    if adapters.loading_adapter_only:
        set_adapter_state_dict(root, state)
        state.clear()
        return
    _require_same_k(adapters, state, prefix)
    active = _active_in(adapters, state, prefix)
    moved = {}
    for base in _shared_names(adapters):
        given = _keys(adapters, prefix, active, base)
        now = _keys(adapters, prefix, adapters.active, base)
        for old, new in zip(given, now, strict=True):
            if old in state:
                moved[new] = state.pop(old)
    state.update(moved)


def _expect_no_base(root: nn.Module, keys: Any) -> None:
    """Report no key as missing if the state dict holds an adapter without the base."""
    adapters = adapters_of(root)
    if adapters.loading_adapter_only:
        adapters.loading_adapter_only = False
        keys.missing_keys.clear()


def _active_in(adapters: VBLoRA, state: Mapping[str, Any], prefix: str) -> str | None:
    """Return which adapter was active when a state dict was made.

    Its extra states show that. Without extra states, it is the model's active adapter if the state
    dict holds logits, and otherwise no adapter.

    Raises:
        ModelError: the state dict holds heads or biases, but only logits of inactive adapters.
    """
    extra = {name: state.get(_key(prefix, name, "_extra_state")) for name in adapters.adapters}
    known = {name: bool(value[1]) for name, value in extra.items() if value is not None}
    if known:
        return next((name for name in known if known[name]), None)
    logits = [key.removesuffix(".logits") for key in state if key.endswith(".logits")]
    found = {key.rpartition(".updates.")[2] for key in logits} & set(adapters.adapters)
    if found and adapters.active not in found:
        _require_no_heads(adapters, state, prefix, found)
    return adapters.active if found else None


def _keys(adapters: VBLoRA, prefix: str, active: str | None, base: str) -> list[str]:
    """Return the keys of one tensor in a state dict: the base's own, and then those of the
    adapters' versions.

    Args:
        active: the adapter whose version is in the base's module.
    """
    inside = prefix + path_of(adapters.root, base)
    stand_ins = {name: adapters.adapter(name).stand_ins for name in adapters.adapters}
    waiting = {
        name: _key(prefix, name, f"stand_ins.{held.keys()[base]}")
        for name, held in stand_ins.items()
        if base in held.names
    }
    own = waiting.get(active or "", inside)
    return [own, *(inside if name == active else key for name, key in waiting.items())]


def _shared_names(adapters: VBLoRA) -> Iterator[str]:
    """Yield the names of the base's tensors that an adapter has its own version of."""
    names = [adapters.adapter(name).stand_ins.names for name in adapters.adapters]
    yield from dict.fromkeys(base for each in names for base in each)


def _require_same_k(adapters: VBLoRA, state: Mapping[str, Any], prefix: str) -> None:
    """Refuse a state dict with another k.

    The outputs would differ, and no tensor's shape would show it.
    """
    for name in adapters.adapters:
        own = adapters.adapter(name).get_extra_state()
        given = state.get(_key(prefix, name, "_extra_state"), own)
        if int(given[0]) != int(own[0]):
            raise ModelError(
                "the state dict belongs to an adapter with another k",
                part=f"adapter {name}",
                found=int(given[0]),
                expected=int(own[0]),
                advice="inject an adapter with that topk",
            )


def _require_no_heads(
    adapters: VBLoRA, state: Mapping[str, Any], prefix: str, found: set[str]
) -> None:
    """Refuse heads and biases if the state dict does not show which adapter they belong to."""
    bases = [prefix + path_of(adapters.root, base) for base in _shared_names(adapters)]
    if any(base in state for base in bases):
        raise ModelError(
            "the state dict does not show which adapter's heads and biases it holds",
            found=f"logits of {', '.join(sorted(found))}, and no _extra_state",
            expected=f"logits of the active adapter, {adapters.active}",
            advice="call set_adapter for the adapter that was active when it was saved",
        )


def _key(prefix: str, adapter: str, leaf: str) -> str:
    return f"{prefix}vblora.adapters.{adapter}.{leaf}"
