"""Sort the keys of PEFT's VB-LoRA state dicts by the kind of tensor."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vbfmt._files.peft_layout import names_of
from vbfmt._files.wrappers import by_plain_name, parallel_prefix
from vbfmt.errors import SourceError, few

Factor: TypeAlias = Literal["A", "B"]

_BANK = re.compile(r"^(?P<wrap>(?:.*\.)?)vblora_vector_bank(?:\.(?P<adapter>[^.]+))?$")
_ROWS = re.compile(
    r"^(?P<module>.+)\.vblora_logits_(?P<factor>[AB])"
    r"(?:\.(?P<adapter>[^.]+?))?(?:_topk_(?P<what>indices|weights))?$"
)
_ROOT = re.compile(r"^(?:.*?\.)?base_model\.model\.")
_TRAINED_WHOLE = ".modules_to_save."
_UNDER = ".base_layer"
_EMBEDDINGS = 2  # input and output


@dataclass(frozen=True)
class Keys:
    """The keys of a state dict, sorted.

    Attributes:
        bank: key of the vector bank.
        copies: other keys of the bank. A whole model's state dict has one for each layer.
        modules: module's name → factor → kind of tensor → key. The kinds are ``logits``, or
            ``indices`` and ``weights``.
        others: name in the base model → key, for other trained tensors.
        in_logits_form: whether the state dict has logits. If False, it has indices and weights
            (top-k form).
        left_out: keys of the base model's own weights, if the state dict is that of a whole model.
    """

    bank: str
    copies: tuple[str, ...]
    modules: dict[str, dict[Factor, dict[str, str]]]
    others: dict[str, str]
    in_logits_form: bool
    left_out: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        """The keys of all tensors that become part of the adapter."""
        parts = [part for factors in self.modules.values() for part in factors.values()]
        return [
            self.bank,
            *(key for part in parts for key in part.values()),
            *self.others.values(),
        ]

    def in_order(self, what: str) -> list[str]:
        """Return the keys of one kind of tensor, by module, and for each module first A, then B."""
        return [
            self.modules[name][factor][what]
            for name in self.modules
            for factor in _FACTORS
            if what in self.modules[name][factor]
        ]


_FACTORS: tuple[Factor, Factor] = ("A", "B")


def parse(keys: Collection[str], *, bias: str = "none") -> Keys:
    """Sort the keys of the state dict of an adapter, or of a whole model.

    The names in the result do not have the prefixes that torch.compile, FSDP, DDP and activation
    checkpointing add.

    Args:
        keys: the keys.
        bias: PEFT's setting for trained biases. It is needed for a whole model's state dict, which
            does not show which biases were trained.

    Raises:
        SourceError: there is no bank or several, there are several adapters, a factor is
            incomplete, or there are both logits and top-k tensors.
    """
    plain = _plain(keys)
    rows = {name: match for name in sorted(plain) if (match := _ROWS.match(name))}
    banks = {name: match for name in plain if (match := _BANK.match(name))}
    owners = list(dict.fromkeys(match["module"] for match in rows.values()))
    _require_one_adapter(banks.values())
    bank, copies = _the_bank(banks, set(owners), plain)
    _require_one_adapter(rows.values())
    prefix = _prefix(banks[bank]["wrap"], owners)
    modules: dict[str, dict[Factor, dict[str, str]]] = {}
    for name, match in rows.items():
        factor: Factor = "A" if match["factor"] == "A" else "B"
        part = modules.setdefault(match["module"].removeprefix(prefix), {}).setdefault(factor, {})
        if part.setdefault(match["what"] or "logits", plain[name]) != plain[name]:
            raise SourceError("one tensor under two keys", part=plain[name])
    in_logits_form = _one_form(modules)
    rest = {n: key for n, key in plain.items() if n not in banks and n not in rows}
    kept = _trained(rest, rows.values(), bias)
    names = names_of(kept, prefix, modules)
    return Keys(
        bank=plain[bank],
        copies=tuple(plain[name] for name in copies),
        modules=modules,
        others={name: plain[key] for name, key in names.items()},
        in_logits_form=in_logits_form,
        left_out=tuple(sorted(set(rest) - set(kept))),
    )


def _plain(keys: Collection[str]) -> dict[str, str]:
    """Return the keys by their names without wrappers' prefixes.

    Raises:
        SourceError: two keys have the same name.
    """
    result = {}
    for name, found in by_plain_name(keys).items():
        if len(found) > 1:
            raise SourceError("two keys have the same name", part=name, found=", ".join(found[:2]))
        result[name] = found[0]
    return result


def _prefix(wrap: str, names: list[str]) -> str:
    """Return the prefix of modules' names before their names in the base model.

    Args:
        wrap: the prefix of the bank's name.
        names: the modules' names.
    """
    if wrap and wrap.removesuffix(".") not in names:
        prefix = f"{wrap}model."
    else:  # the bank's name does not contain the prefix
        match = _ROOT.match(names[0]) if names else None
        prefix = match[0] if match else ""
    if not all(name.startswith(prefix) for name in names):
        return prefix
    return prefix + parallel_prefix([name.removeprefix(prefix) for name in names])


def _trained(rest: Mapping[str, str], rows: Collection[re.Match[str]], bias: str) -> dict[str, str]:
    """Return the trained tensors among those that are not part of the factors.

    In an adapter's state dict, all of them are trained, except the base's weights of an adapted
    embedding and output head, which PEFT saves as well. In a whole model's state dict, the trained
    tensors are the modules that PEFT saves completely, and the biases that `bias` selects.
    """
    modules = {row["module"] for row in rows}
    of_base = {f"{module}{_UNDER}.weight" for module in modules} & rest.keys()
    # PEFT names the adapter in a model's state dict, and removes its name when it saves an adapter.
    is_whole = any(row["adapter"] for row in rows) or len(of_base) > _EMBEDDINGS
    if not of_base or not is_whole:
        return {name: key for name, key in rest.items() if name not in of_base}

    def is_trained(name: str) -> bool:
        if _TRAINED_WHOLE in name:
            return True
        if not name.endswith(".bias"):
            return False
        of_a_layer = name.removesuffix(f"{_UNDER}.bias") in modules
        return bias == "all" or (of_a_layer and bias == "vblora_only")

    return {name: key for name, key in rest.items() if is_trained(name)}


def _require_one_adapter(matches: Iterable[re.Match[str]]) -> None:
    names = {match["adapter"] or "" for match in matches}
    if len(names) > 1:
        raise SourceError(
            "more than one adapter",
            found=", ".join(sorted(name or "(no name)" for name in names)),
            expected="one",
            advice="save each adapter into its own folder",
        )


def _the_bank(
    banks: Mapping[str, re.Match[str]], modules: Collection[str], names: Collection[str]
) -> tuple[str, list[str]]:
    """Return the bank's name, and the names of its copies in the adapted layers."""
    in_layers = sorted(name for name in banks if banks[name]["wrap"].removesuffix(".") in modules)
    outside = sorted(set(banks) - set(in_layers))
    if len(outside) == 1:
        return outside[0], in_layers
    if not outside and in_layers:
        return in_layers[0], in_layers[1:]
    lora = any(".lora_A" in name or ".lora_B" in name for name in names)
    raise SourceError(
        "not exactly one VB-LoRA adapter",
        part="vector bank",
        found=few(outside) if outside else "LoRA factors" if lora else "none",
        expected="one key like base_model.vblora_vector_bank",
        advice="this is a standard LoRA already; only VB-LoRA can be packed"
        if lora and not outside
        else None,
    )


def _one_form(modules: Mapping[str, Mapping[Factor, Mapping[str, str]]]) -> bool:
    """Return whether all factors have logits, and not top-k tensors.

    Raises:
        SourceError: there are no factors, one is incomplete, or there are factors of both forms.
    """
    if not modules:
        raise SourceError(
            "a vector bank, but no module that uses it",
            part="keys",
            expected="keys like base_model.model.….vblora_logits_A",
        )
    forms = {"logits": {"logits"}, "top-k": {"indices", "weights"}}
    first = next(iter(next(iter(modules.values())).values()))
    wanted = forms["logits"] if "logits" in first else forms["top-k"]
    for name, factors in modules.items():
        for factor in _FACTORS:
            found = set(factors.get(factor, {}))
            if found != wanted:
                raise SourceError(
                    "incomplete checkpoint",
                    part=f"{name}, factor {factor}",
                    found=" and ".join(sorted(found)) or "nothing",
                    expected=" and ".join(sorted(wanted)),
                )
    return wanted == forms["logits"]
