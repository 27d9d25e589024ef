"""``target_modules`` that match an adapter's modules and no others.

PEFT takes a name for every module whose name ends with it, so the last component alone (``0``,
``head``) may match other modules too, and some of those are no layers. Whole names match exactly.

In a mixture-of-experts model, PEFT 0.18 and later with transformers 5 takes ``gate_proj`` and the
like for parts of the fused experts, whatever stands in front (`_convert_peft_config_moe` in
peft/utils/transformers_weight_conversion.py). So it loses dense layers and shared experts of these
names, unless they are targeted as parameters, which gives the same layers.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

_FUSED = frozenset(("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"))
"""Last components of names that PEFT takes for parts of fused experts."""
_LOST = {
    "shared_experts": "laguna and mistral_large4",
    "embed_action_time": "pi0",
    "sam_encoder": "unlimited_ocr",
}
"""Components of names in models of which PEFT 0.21 loses layers when it loads a LoRA, as `make
architectures` found: it renames their keys as if they were those of the base's files. With the base
at hand PEFT itself is asked (`vbfmt.converters.peft.on_base`), and this list is not."""
_ROUTED = re.compile(r"(^|\.)experts\.\d+\.")
_LAYER = re.compile(r"^(?P<stack>.*?)\.(?P<number>\d+)\.(?P<kind>.+)$")


@dataclass(frozen=True)
class Targets:
    """What a LoRA config names.

    Attributes:
        modules: as ``target_modules``.
        parameters: as ``target_parameters``: the weights of layers that PEFT would take for fused
            experts.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...] = ()


def exact(names: Collection[str], *, experts: bool | None = None) -> Targets:
    """Targets that match exactly these modules.

    Args:
        names: of the modules, whole.
        experts: whether the base is a mixture-of-experts model; None if that is not known, and the
            the names must show.
    """
    mixed = experts if experts is not None else _of_experts(names)
    lost = {name for name in names if mixed and _leaf(name) in _FUSED and not _ROUTED.search(name)}
    return Targets(
        modules=tuple(sorted(set(names) - lost)),
        parameters=tuple(sorted(f"{name}.weight" for name in lost)),
    )


def routed(names: Collection[str]) -> list[str]:
    """The modules that are experts, of which transformers 5 makes 3-D parameters."""
    return sorted(name for name in names if _ROUTED.search(name))


def doubt(names: Collection[str]) -> str | None:
    """What the user should know where PEFT may load something else than the adapter."""
    experts = routed(names)
    if experts:
        return (
            f"{len(experts)} modules are experts ({experts[0]}, …): transformers 5 keeps experts "
            "fused, and PEFT converts such a LoRA when it loads it; load_adapter checks the result"
        )
    for part, kinds in _LOST.items():
        if any(part in name.split(".") for name in names):
            return (
                f"in models of type {kinds}, PEFT loses layers of such a LoRA when it loads the "
                "folder; give the base (`base=PATH`) to have names by which it finds them"
            )
    alone = {_leaf(name) for name in names} <= _FUSED
    if alone and not exact(names).parameters:
        return (
            "the adapter has MLP layers alone: in a mixture-of-experts model PEFT would take them "
            "for experts; load_adapter checks that"
        )
    return None


def _of_experts(names: Collection[str]) -> bool:
    """Whether the names are those of a mixture-of-experts model: experts among them, or layers that
    lack one of the projections that others have."""
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
