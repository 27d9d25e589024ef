"""List what each runtime refuses or silently drops in a LoRA, with the source of each rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.names import targets
from vbfmt.errors import ConfigError, TargetError, few

Effect: TypeAlias = Literal["refuses", "drops", "may drop", "needs"]

_LAYER = re.compile(r"^(?P<stack>.*\.)(?P<number>\d+)\.(?P<kind>.+)$")
_TOWER = re.compile(r"(?:^|[._])(?:vision|visual|image|audio|speech|projector)(?:[._]|$)")
_VLLM_DEFAULT_RANK = 16
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vllm/config/lora.py, MaxLoRARanks
_VLLM_HEADS = ("score", "classifier")


@dataclass(frozen=True)
class Rule:
    """A rule of a runtime, for LoRAs that this package writes.

    Attributes:
        runtime: the runtime's name on the command line.
        effect: whether the runtime refuses to load the adapter, silently drops something, may drop
            something (depending on the model's class, which is not checked here), or needs a
            setting.
        what: a function that describes what the rule applies to in an adapter. It returns "" if the
            rule does not apply.
        advice: what the user can do.
        source: the runtime's source file that shows the rule.
    """

    runtime: str
    effect: Effect
    what: Callable[[LowRank], str]
    advice: str
    source: str


@dataclass(frozen=True)
class Finding:
    """A rule that applies to an adapter, and a description of what it applies to."""

    rule: Rule
    what: str

    def __str__(self) -> str:
        rule = self.rule
        return f"{rule.runtime} {rule.effect} {self.what}; {rule.advice} ({rule.source})"


def _extras(adapter: LowRank) -> str:
    return few(list(adapter.tensors))


def _biases(adapter: LowRank) -> str:
    modules = {module.name for module in adapter.modules}
    return few([f"{m}.bias" for m in sorted(modules) if f"{m}.bias" in adapter.tensors])


def _heads(adapter: LowRank) -> list[str]:
    """Return the names of tensors that are not the bias of an adapted module."""
    modules = {module.name for module in adapter.modules}
    return [name for name in adapter.tensors if name.removesuffix(".bias") not in modules]


def _known_head(adapter: LowRank) -> str:
    """Return the classifier's head if vLLM recognizes it: one linear layer with a known name."""
    owners = {name.rpartition(".")[0] for name in _heads(adapter)}
    head = owners.pop() if len(owners) == 1 else ""
    return f"to know heads: {head}" if head in _VLLM_HEADS else ""


def _unknown_heads(adapter: LowRank) -> str:
    return "" if _known_head(adapter) else few(_heads(adapter))


def _high_rank(adapter: LowRank) -> str:
    rank = max(module.rank for module in adapter.modules)
    enough = next((choice for choice in _VLLM_RANKS if choice >= rank), None)
    return f"--max-lora-rank {enough}" if enough and rank > _VLLM_DEFAULT_RANK else ""


def _highest_rank(adapter: LowRank) -> str:
    rank = max(module.rank for module in adapter.modules)
    return f"rank {rank}" if rank > _VLLM_RANKS[-1] else ""


def _others(adapter: LowRank) -> str:
    return few(_heads(adapter))


def _outside_layers_and_ends(adapter: LowRank) -> str:
    names = [m.name for m in adapter.modules if ".layers." not in f".{m.name}"]
    return few([name for name in names if not name.endswith(("embed_tokens", "lm_head"))])


def _query_without_value(adapter: LowRank) -> str:
    names = {module.name for module in adapter.modules}
    ends = ("q_proj", "v_proj")
    return few(
        sorted(
            n for n in names if n.endswith(ends[0]) and n[: -len(ends[0])] + ends[1] not in names
        )
    )


def _parameters(adapter: LowRank) -> str:
    """Return the dense layers of a mixture-of-experts model, which are not in
    ``target_modules``."""
    found = targets.exact([module.name for module in adapter.modules]).parameters
    return few([name.removesuffix(".weight") for name in found])


def _orphans(adapter: LowRank) -> str:
    """Return the modules that SGLang fuses with another module that the adapter lacks."""
    names = {module.name for module in adapter.modules}
    leader = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    found = []
    for name in sorted(names):
        stem, _, leaf = name.rpartition(".")
        if leaf in leader and f"{stem}.{leader[leaf]}" not in names:
            found.append(name)
    return few(found)


def _towers(adapter: LowRank) -> str:
    """Return the modules of towers, the parts of a model that encode images or audio."""
    return few([module.name for module in adapter.modules if _TOWER.search(module.name)])


def _language_part(adapter: LowRank) -> str:
    """Return the modules of the language model inside a model with several parts."""
    names = [module.name for module in adapter.modules]
    return few([name for name in names if "language_model." in name and not _TOWER.search(name)])


def _several_parts(adapter: LowRank) -> str:
    return _towers(adapter) or _language_part(adapter)


def _gaps(adapter: LowRank) -> str:
    """Return the kinds of modules that only some layers have."""
    layers: dict[str, set[int]] = {}
    for module in adapter.modules:
        if match := _LAYER.match(module.name):
            layers.setdefault(match["kind"], set()).add(int(match["number"]))
    last = max((max(numbers) for numbers in layers.values()), default=-1)
    gaps = [kind for kind, numbers in layers.items() if len(numbers) <= last]
    return f"{few(gaps)} in every layer" if gaps else ""


_ABOUT_EXTRAS = (_extras, _biases, _known_head, _unknown_heads, _others)

_LEAVE_OUT = "leave them out with `drop_extras=True`, or merge"
_MERGE = "merge the adapter into its base instead"

_COMPARE = "it depends on the model's class, which is not checked: compare its output, or merge"

_VLLM = "vllm/lora/peft_helper.py"
_SGLANG = "sglang/srt/lora/lora.py"

RULES = (
    Rule("vllm", "refuses", _unknown_heads, _LEAVE_OUT, f"{_VLLM}, _validate_features"),
    Rule("vllm", "refuses", _biases, _LEAVE_OUT, f"{_VLLM}, validate_legal"),
    Rule("vllm", "refuses", _highest_rank, "lower it with `rank`", "vllm/config/lora.py"),
    Rule(
        "vllm",
        "needs",
        _known_head,
        "0.33 does, older versions refuse them",
        "vllm/lora/utils.py, parse_fine_tuned_lora_name",
    ),
    Rule(
        "vllm",
        "needs",
        _high_rank,
        f"it accepts ranks up to {_VLLM_DEFAULT_RANK} by default",
        f"{_VLLM}, validate_legal",
    ),
    Rule(
        "vllm",
        "drops",
        _towers,
        f"with --enable-tower-connector-lora some models load them; otherwise {_MERGE}",
        "vllm/lora/model_manager.py",
    ),
    Rule("vllm", "may drop", _language_part, _COMPARE, "vllm/lora/lora_model.py"),
    Rule("sglang", "may drop", _several_parts, _COMPARE, "sglang/srt/lora/lora_manager.py"),
    Rule(
        "tgi",
        "may drop",
        _several_parts,
        _COMPARE,
        "server/text_generation_server/adapters/lora.py",
    ),
    Rule("sglang", "drops", _outside_layers_and_ends, _MERGE, f"{_SGLANG}, _process_weight"),
    Rule(
        "sglang",
        "drops",
        _parameters,
        f"it reads target_modules, not target_parameters: {_MERGE}",
        "sglang/srt/lora/lora_manager.py",
    ),
    Rule("sglang", "drops", _others, _MERGE, f"{_SGLANG}, _process_weight"),
    Rule("sglang", "refuses", _biases, _LEAVE_OUT, "sglang/srt/lora/mem_pool.py"),
    Rule(
        "sglang",
        "refuses",
        _query_without_value,
        f"it fuses q_proj with the v_proj of the same layer: {_MERGE}",
        f"{_SGLANG}, normalize_qkv_proj",
    ),
    Rule(
        "sglang",
        "drops",
        _orphans,
        f"it fuses k_proj and v_proj with q_proj, and up_proj with gate_proj: {_MERGE}",
        f"{_SGLANG}, normalize_qkv_proj, normalize_gate_up_proj",
    ),
    Rule(
        "tgi",
        "drops",
        _extras,
        _MERGE,
        "server/text_generation_server/adapters/lora.py, map_weights_for_model",
    ),
    Rule(
        "tgi",
        "drops",
        _gaps,
        f"a kind of module that one layer lacks is skipped in all: {_MERGE}",
        "server/text_generation_server/adapters/lora.py, prepare_weights",
    ),
    Rule("llama.cpp", "refuses", _extras, _LEAVE_OUT, "src/llama-adapter.cpp"),
    Rule("ollama", "refuses", _extras, _LEAVE_OUT, "src/llama-adapter.cpp of llama.cpp"),
)
"""The rules come from the source code of vllm 0.33.0 and sglang 0.5.23 (which
tests/converters/test_serving.py runs), text-generation-inference at commit 45d95bd, and llama.cpp
as in llama-cpp-python 0.3.36. There are no rules for mlx-lm, because `vbfmt.converters.mlx` refuses
to write what mlx-lm would drop. Rules about configs are not listed, because every config that is
written here obeys them: one integer rank, alpha equal to the rank, full names as targets, no DoRA
and no rank pattern."""

FORMS = {
    "vllm": "peft",
    "sglang": "peft",
    "tgi": "peft",
    "llama.cpp": "gguf",
    "ollama": "gguf",
    "mlx": "mlx",
}
"""Runtime → the form (in `vbfmt.converters.WRITERS`) that it loads without conversion. Ollama
itself can convert folders of some architectures, which is not checked here."""


def form_of(runtime: str) -> str:
    """Return the form (in `vbfmt.converters.WRITERS`) that a runtime loads.

    Raises:
        ConfigError: the runtime is unknown.
    """
    if runtime not in FORMS:
        raise ConfigError("unknown runtime", found=runtime, expected=", ".join(FORMS))
    return FORMS[runtime]


def findings(adapter: LowRank, runtime: str, *, drop_extras: bool = False) -> list[Finding]:
    """Return the rules of a runtime that apply to an adapter.

    Args:
        adapter: the adapter.
        runtime: the runtime's name.
        drop_extras: skip the rules about trained biases and heads, because they will be left out.

    Raises:
        ConfigError: the runtime is unknown.
    """
    form_of(runtime)
    skipped = _ABOUT_EXTRAS if drop_extras else ()
    return [
        Finding(rule, what)
        for rule in RULES
        if rule.runtime == runtime and rule.what not in skipped and (what := rule.what(adapter))
    ]


def require_loadable(adapter: LowRank, runtime: str, *, drop_extras: bool = False) -> list[Finding]:
    """Refuse an adapter that a runtime would refuse. Otherwise, return the findings.

    Arguments are those of `findings`.

    Raises:
        TargetError: the runtime would refuse the adapter.
        ConfigError: the runtime is unknown.
    """
    found = findings(adapter, runtime, drop_extras=drop_extras)
    for finding in found:
        if finding.rule.effect == "refuses":
            raise TargetError(
                f"{runtime} would not load it ({finding.rule.source})",
                found=finding.what,
                advice=finding.rule.advice,
            )
    return found
