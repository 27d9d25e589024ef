"""Select the layers of a model that an adapter changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from math import gcd

from torch import nn

from vbfmt._files.wrappers import without_wrappers
from vbfmt._patterns import matcher
from vbfmt._similar import nearest
from vbfmt.errors import ConfigError, ModelError, few
from vbfmt.torch.config import ALL_LINEAR, VBLoRAConfig
from vbfmt.torch.linear import VBLoRALinear, features_of, is_adaptable, returns_plainly
from vbfmt.torch.wrapped import inner_of

# Modules that PEFT fully trains for these tasks, whatever the config says (peft/peft_model.py).
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
_SHOWN = 3


def find_targets(
    model: nn.Module, config: VBLoRAConfig, saved: Collection[str]
) -> dict[str, nn.Module]:
    """Return the layers that the config selects, by name, in the model's order.

    A layer that another adapter has wrapped counts as the layer inside.

    Args:
        saved: full names of the fully trained modules, which are not adapted.

    Raises:
        ModelError: no module matches, or a named module is not a linear layer.
        ConfigError: b does not divide a layer's features. The message suggests another b.
    """
    layers = dict(base_modules(model))
    targets = {
        name: layer
        for name, layer in layers.items()
        if name
        and not any(name == whole or name.startswith(f"{whole}.") for whole in saved)
        and not matches(name, config.exclude_modules)
        and _is_meant(name, layer, config)
        and _is_in_block(name, config)
    }
    for layer in _outputs(model, config):
        targets = {name: found for name, found in targets.items() if found is not layer}
    if not targets:
        raise _nothing_found(layers, config)
    for name, layer in targets.items():
        if not is_adaptable(layer):
            raise ModelError(
                "the config names a module that VB-LoRA cannot adapt",
                part=name,
                found=type(layer).__name__,
                expected="torch.nn.Linear or transformers' Conv1D, called by its model",
                advice="leave it out with exclude_modules",
            )
    _require_divisible(targets, config.vector_length)
    return targets


def unmatched(model: nn.Module, config: VBLoRAConfig, targets: Collection[str]) -> list[str]:
    """Return a warning for each list in the config that has entries without a match.

    As in PEFT, `exclude_modules` may match any module, but `rank_pattern` only adapted ones. PEFT
    ignores names in `target_modules` that match no module if others do.

    Args:
        targets: the layers that are adapted.

    Raises:
        ConfigError: a pattern is not a regular expression.
    """
    everything = [name for name, _ in base_modules(model) if name]
    named: dict[str, tuple[str | Collection[str], Collection[str]]] = {
        "target_modules": (config.target_modules, everything),
        "exclude_modules": (config.exclude_modules, everything),
        "rank_pattern": (config.rank_pattern, targets),
    }
    sentences = []
    for what, (wanted, among) in named.items():
        if wanted == ALL_LINEAR:
            continue
        patterns = [wanted] if isinstance(wanted, str) else list(wanted)
        expressions = isinstance(wanted, str) or what == "rank_pattern"
        vain = [each for each in patterns if not _fits_any(each, among, expressions)]
        if wanted and vain:
            kind = "adapted layer" if what == "rank_pattern" else "module of the model"
            near = _nearest(vain[0], list(among))
            sentences.append(f"{what}: no {kind} matches {few(vain)}; there is {near}")
    return sentences


def left_out(model: nn.Module, config: VBLoRAConfig, targets: Mapping[str, nn.Module]) -> list[str]:
    """Return a warning if "all-linear" leaves out most of the weights.

    In some mixture-of-experts models, all experts of a layer are stacked in one three-dimensional
    parameter, which is not a linear layer.
    """
    if config.target_modules != ALL_LINEAR:
        return []
    adapted = sum(inner * outer for inner, outer in map(features_of, targets.values()))
    stacked = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and "vblora" not in name
    }
    size = sum(parameter.numel() for parameter in stacked.values())
    if size <= adapted:
        return []
    largest = max(stacked, key=lambda name: stacked[name].numel())
    return [
        f"all-linear leaves out {100 * size / (size + adapted):.0f} % of the weights: {largest}, "
        f"{tuple(stacked[largest].shape)}, holds all experts in one parameter, which VB-LoRA "
        f"cannot adapt"
    ]


def _fits_any(pattern: str, names: Collection[str], expression: bool) -> bool:
    return any(
        matches(name, [pattern]) or (expression and matches(name, pattern)) for name in names
    )


def matches(name: str, pattern: str | Collection[str]) -> bool:
    """Return whether a module name matches `pattern`.

    `pattern` is a regular expression for the full name, or a list of names. One of these must equal
    the full name or its last components.

    Raises:
        ConfigError: `pattern` is not a regular expression, or takes too long.
    """
    if isinstance(pattern, str):
        return matcher(pattern)(name) is not None
    return any(name == wanted or name.endswith(f".{wanted}") for wanted in pattern)


def rank_of(name: str, config: VBLoRAConfig) -> int:
    """Return the rank of a module.

    It is that of the full name in `rank_pattern`, else of the first pattern that matches, else
    `r`.
    """
    if name in config.rank_pattern:
        return config.rank_pattern[name]
    for pattern, rank in config.rank_pattern.items():
        if _fits_any(pattern, [name], True):
            return rank
    return config.r


def modules_to_save(model: nn.Module, config: VBLoRAConfig) -> list[str]:
    """Return the full names of the modules to train fully: `modules_to_save` and the task's heads.

    Raises:
        ModelError: a name matches no module, or PEFT would fully train other modules too.
    """
    names = [name for name, _ in base_modules(model) if name]
    wanted = config.modules_to_save
    for pattern in wanted:
        if not any(matches(name, [pattern]) for name in names):
            raise ModelError(
                "no such module",
                part="modules_to_save",
                found=pattern,
                expected=_nearest(pattern, names),
            )
    heads = saved_by_peft(model, _HEADS.get(config.task_type or "", ()))
    named = _outermost([name for name in names if matches(name, wanted) or name in heads])
    others = [name for name in saved_by_peft(model, named) if name not in named]
    if others:
        raise ModelError(
            "PEFT would also train other modules fully, because it compares the ends of names",
            part="modules_to_save",
            found=f"{', '.join(named[:_SHOWN])}, which also match {', '.join(others[:_SHOWN])}",
            advice="name those as well, or rename the module",
        )
    return named


def saved_by_peft(model: nn.Module, wanted: Collection[str]) -> list[str]:
    """Return the full names of the modules that PEFT fully trains for these ``modules_to_save``.

    PEFT compares the ends of names, even within a component, and ignores names without a match
    (peft/utils/other.py, ``_set_trainable``).
    """
    ends = tuple(wanted)
    return _outermost([name for name, _ in base_modules(model) if name and name.endswith(ends)])


def _outermost(names: list[str]) -> list[str]:
    """Return the names of the modules that are not inside another one."""
    return [name for name in names if not any(name.startswith(f"{outer}.") for outer in names)]


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the model's modules, with the names that they have without adapters and wrappers."""
    inside: tuple[str, ...] = ("vblora.",)
    for name, module in model.named_modules():
        if name == "vblora" or name.startswith(inside):
            continue
        plain = without_wrappers(name)
        if isinstance(module, VBLoRALinear):
            inside += (f"{name}.",)
            yield plain, module.base_layer
        elif inner_of(module) is None:
            yield plain, module


def _is_meant(name: str, layer: nn.Module, config: VBLoRAConfig) -> bool:
    if config.target_modules != ALL_LINEAR:
        return matches(name, config.target_modules)
    return is_adaptable(layer) and returns_plainly(layer)


def _is_in_block(name: str, config: VBLoRAConfig) -> bool:
    """Return whether a layer is in one of the blocks in `layers_to_transform`.

    This is decided as in PEFT (peft/tuners/tuners_utils.py, ``check_target_module_exists``).
    """
    numbers = config.block_numbers
    if not numbers:
        return True
    patterns = config.layers_pattern
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = [matcher(rf"(?:.*\.)?{pattern}\.(\d+)\..*")(name) for pattern in patterns or [r"[^.]*"]]
    first = next((match for match in found if match), None)
    return first is not None and int(first.group(1)) in numbers


def _outputs(model: nn.Module, config: VBLoRAConfig) -> list[nn.Module]:
    """Return the output embeddings, which "all-linear" leaves out."""
    find = getattr(model, "get_output_embeddings", None)
    if config.target_modules != ALL_LINEAR or find is None:
        return []
    try:
        layer = find()
    except NotImplementedError:
        return []
    return [layer] if isinstance(layer, nn.Module) else []


def _require_divisible(targets: dict[str, nn.Module], b: int) -> None:
    sizes = {name: features_of(layer) for name, layer in targets.items()}
    unfit = _not_divided(sizes, b)
    if not unfit:
        return
    common = gcd(*(size for pair in sizes.values() for size in pair))
    all_of_them, most = _largest_divisor(common, b), _length_for_most(sizes, b)
    odd = _not_divided(sizes, most)
    few_are_odd = 0 < 2 * len(odd) <= len(sizes)
    shown = odd if few_are_odd else unfit
    inner, outer = sizes[shown[0]]
    advice = (
        f"vector_length={all_of_them} divides those of all {len(sizes)} target modules "
        f"(as does every divisor of {common})"
    )
    if few_are_odd:
        heads = list(dict.fromkeys(head for name in odd if (head := _head_of(name))))
        rest = [name for name in odd if not _head_of(name)]
        ways = [f"train {few(heads)} fully (modules_to_save={heads[:_SHOWN]}, or task_type)"]
        ways = ways * bool(heads) + [f"leave out {few(rest)} (exclude_modules)"] * bool(rest)
        advice = (
            f"{' and '.join(ways)}: vector_length={most} divides the features "
            f"of the other {len(sizes) - len(odd)} target modules; without that, use "
            f"vector_length={all_of_them}"
        )
    raise ConfigError(
        "the vector length does not divide the layer's features",
        part=few(shown),
        found=f"b = {b}, {inner} → {outer}",
        advice=advice,
    )


def _head_of(name: str) -> str | None:
    """Return the name of the task's head, such as ``classifier``, that contains a module or is
    it."""
    parts = name.split(".")
    heads = {head for named in _HEADS.values() for head in named}
    at = next((at for at, part in enumerate(parts) if part in heads), None)
    return None if at is None else ".".join(parts[: at + 1])


def _not_divided(sizes: dict[str, tuple[int, int]], b: int) -> list[str]:
    return [name for name, (inner, outer) in sizes.items() if inner % b or outer % b]


def _largest_divisor(number: int, limit: int) -> int:
    return max(d for d in range(1, min(limit, number) + 1) if number % d == 0)


def _length_for_most(sizes: dict[str, tuple[int, int]], b: int) -> int:
    """Return the largest vector length up to b that divides the features of most weights."""
    weights: Counter[int] = Counter()
    for inner, outer in sizes.values():
        weights[b if inner % b == outer % b == 0 else gcd(inner, outer)] += inner * outer
    return _largest_divisor(weights.most_common(1)[0][0], b)


def _nothing_found(layers: dict[str, nn.Module], config: VBLoRAConfig) -> ModelError:
    linear = [name for name, layer in layers.items() if name and is_adaptable(layer)]
    if not linear:
        return ModelError("the model has no linear layers to adapt")
    wanted = config.target_modules
    leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
    advice = None
    if isinstance(wanted, str) and wanted != ALL_LINEAR:
        advice = (
            f"a string is a regular expression for full names; to give a name, use [{wanted!r}]"
        )
    return ModelError(
        "no module of the model is a target",
        part="target_modules",
        found=wanted,
        expected=f"some of its linear layers: {', '.join(leaves[:8])}",
        advice=advice,
    )


def _nearest(name: str, names: list[str]) -> str:
    near = nearest(name, names, _SHOWN) or names[:_SHOWN]
    return f"a module such as {', '.join(near)}"
