"""Find ``target_modules`` that match exactly an adapter's modules.

In PEFT, a name matches every module whose name ends with it. So the last component alone (``0``,
``head``) may also match other modules, some of which are not layers. Full names match exactly.

In a mixture-of-experts model, PEFT 0.18 and later with transformers 5 treats every target that ends
in ``gate_proj`` and the like as part of the fused experts (`_convert_peft_config_moe` in
peft/utils/transformers_weight_conversion.py). So it loses dense layers and shared experts with
these names. Naming their weights in ``target_parameters`` instead gives the same layers.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

_FUSED = frozenset(("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"))
"""Last components of names that PEFT treats as parts of fused experts."""
_LOST = {
    "shared_experts": "laguna and mistral_large4",
    "embed_action_time": "pi0",
    "sam_encoder": "unlimited_ocr",
}
"""Component of a module's name → types of models in which PEFT 0.21 loses modules with this
component. When PEFT loads a LoRA, it renames the keys as if they were names in the base's files.
`make architectures` found these components. The table is used only if the base is not given; with
the base, `vbfmt.converters.peft.on_base` tests what PEFT loads."""
_ROUTED = re.compile(r"(^|\.)experts\.\d+\.")
_LAYER = re.compile(r"^(?P<stack>.*?)\.(?P<number>\d+)\.(?P<kind>.+)$")


@dataclass(frozen=True)
class Targets:
    """The targets in a LoRA config.

    Attributes:
        modules: names for ``target_modules``.
        parameters: names for ``target_parameters``: weights of layers that PEFT would otherwise
            treat as fused experts.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...] = ()


def exact(names: Collection[str], *, experts: bool | None = None) -> Targets:
    """Return targets that match exactly these modules.

    Args:
        names: full names of the modules.
        experts: whether the base is a mixture-of-experts model; None to decide from the names.
    """
    mixed = experts if experts is not None else _of_experts(names)
    lost = {name for name in names if mixed and _leaf(name) in _FUSED and not _ROUTED.search(name)}
    return Targets(
        modules=tuple(sorted(set(names) - lost)),
        parameters=tuple(sorted(f"{name}.weight" for name in lost)),
    )


def routed(names: Collection[str]) -> list[str]:
    """Return the modules that are single experts, which transformers 5 fuses."""
    return sorted(name for name in names if _ROUTED.search(name))


def loading_risk(names: Collection[str]) -> str | None:
    """Return a sentence for the user if PEFT may load such a LoRA wrongly, else None.

    Args:
        names: full names of the adapter's modules.
    """
    experts = routed(names)
    if experts:
        return (
            f"{len(experts)} modules are experts ({experts[0]}, …), which transformers 5 fuses, so "
            "PEFT converts such a LoRA when it loads it; load_adapter checks the result"
        )
    for part, kinds in _LOST.items():
        if any(part in name.split(".") for name in names):
            return (
                f"in models of type {kinds}, PEFT loses layers of such a LoRA when it loads the "
                "folder; give the base (`base=PATH`) to write names that PEFT finds"
            )
    alone = {_leaf(name) for name in names} <= _FUSED
    if alone and not exact(names).parameters:
        return (
            "the adapter has only MLP layers, which PEFT would treat as experts in a "
            "mixture-of-experts model; load_adapter checks what PEFT loads"
        )
    return None


def _of_experts(names: Collection[str]) -> bool:
    """Return whether the names are those of a mixture-of-experts model.

    This is so if some modules are experts, or if some layers lack a projection that other layers
    have.
    """
    if any("expert" in part for name in names for part in name.split(".")):
        return True
    all_layers: dict[str, set[str]] = {}
    with_leaf: dict[tuple[str, str], set[str]] = {}
    for name in names:
        if match := _LAYER.match(name):
            all_layers.setdefault(match["stack"], set()).add(match["number"])
            key = match["stack"], _leaf(name)
            with_leaf.setdefault(key, set()).add(match["number"])
    return any(
        leaf in _FUSED and found < all_layers[stack] for (stack, leaf), found in with_leaf.items()
    )


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
