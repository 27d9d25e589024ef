"""The keys of PEFT's VB-LoRA state dicts, taken apart and put together."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vbfmt._files.peft_layout import names_of
from vbfmt.errors import SourceError

Factor: TypeAlias = Literal["A", "B"]

_BANK = re.compile(r"^(?P<wrap>(?:.*\.)?)vblora_vector_bank(?:\.(?P<adapter>[^.]+))?$")
_ROWS = re.compile(
    r"^(?P<module>.+)\.vblora_logits_(?P<factor>[AB])"
    r"(?:\.(?P<adapter>[^.]+?))?(?:_topk_(?P<what>indices|weights))?$"
)


@dataclass(frozen=True)
class Keys:
    """What a state dict's keys say.

    Attributes:
        bank: the key of the vector bank.
        modules: module name → factor → ``logits``, or ``indices`` and ``weights`` → key.
        others: name in the base model → key, of everything else.
        in_logits_form: whether it holds logits, not their top k.
    """

    bank: str
    modules: dict[str, dict[Factor, dict[str, str]]]
    others: dict[str, str]
    in_logits_form: bool

    def in_order(self, what: str) -> list[str]:
        """The keys of that part, module by module, A then B."""
        return [
            self.modules[name][factor][what]
            for name in self.modules
            for factor in _FACTORS
            if what in self.modules[name][factor]
        ]


_FACTORS: tuple[Factor, Factor] = ("A", "B")


def parse(keys: Collection[str]) -> Keys:
    """Sort the keys of a state dict.

    Raises:
        SourceError: no bank or several, several adapters, half a factor, both forms at once.
    """
    bank = _the_bank(keys)
    wrap = _BANK.match(bank)["wrap"] if _BANK.match(bank) else ""  # type: ignore[index]
    prefix = f"{wrap}model." if wrap else ""
    modules: dict[str, dict[Factor, dict[str, str]]] = {}
    others: dict[str, str] = {}
    adapters: set[str] = set()
    twice: list[str] = []
    for key in sorted(set(keys) - {bank}):
        match = _ROWS.match(key)
        if match is None:
            others[key] = key
            continue
        factor: Factor = "A" if match["factor"] == "A" else "B"
        name = match["module"].removeprefix(prefix)
        part = modules.setdefault(name, {}).setdefault(factor, {})
        adapters.add(match["adapter"] or "")
        if part.setdefault(match["what"] or "logits", key) != key:
            twice.append(key)
    _require_one_adapter(adapters)
    if twice:
        raise SourceError("one tensor under two keys", part=twice[0])
    in_logits_form = _one_form(modules)
    return Keys(bank, modules, names_of(others, prefix, modules), in_logits_form)


def _require_one_adapter(names: Collection[str]) -> None:
    if len(names) > 1:
        raise SourceError(
            "more than one adapter",
            found=", ".join(sorted(name or "(no name)" for name in names)),
            expected="one",
            advice="save each adapter into a folder of its own",
        )


def _the_bank(keys: Iterable[str]) -> str:
    matches = {key: match for key in keys if (match := _BANK.match(key))}
    banks = sorted(matches)
    if len(banks) == 1:
        return banks[0]
    _require_one_adapter({match["adapter"] or "" for match in matches.values()})
    lora = any(".lora_A" in key or ".lora_B" in key for key in keys)
    raise SourceError(
        "not one VB-LoRA adapter",
        part="vector bank",
        found=", ".join(banks[:3]) if banks else "LoRA factors" if lora else "none",
        expected="one key like base_model.vblora_vector_bank",
        advice="this is a standard LoRA already" if lora and not banks else None,
    )


def _one_form(modules: Mapping[str, Mapping[Factor, Mapping[str, str]]]) -> bool:
    """Whether it is the logits form; every factor of every module is there, in the same form."""
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
