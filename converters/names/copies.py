"""Refuse to change a weight that a base's files hold more than once.

A base may hold a weight under two names (with and without the model's prefix, as ``gamma`` and as
``weight``), or both fused and split (``qkv_proj`` beside ``q_proj``, stacked experts beside single
ones). Which copy is loaded depends on the runtime and its version: transformers 5 uses the first
name in its own order, combines two forms or raises an error, and initializes what it cannot
convert. So a merge that changes one copy may have no effect.

The model that transformers builds shows which tensors become one weight. If it has not been built
yet, it is built only if names suggest that two tensors are the same weight. If it cannot be built
then, the merge is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from vbfmt.converters.names.loaded_model import LoadedModel, Shape
from vbfmt.converters.names.locations import Locations
from vbfmt.errors import SourceError, few

_ADVICE = (
    "load the base with transformers, check it, save it with save_pretrained, which writes each "
    "weight once, and merge into that"
)
_FUSED = (
    (
        ("qkv_proj", "qkv", "Wqkv", "query_key_value", "c_attn", "W_pack", "in_proj", "qkv_linear"),
        (
            ("q_proj", "k_proj", "v_proj"),
            ("query_proj", "key_proj", "value_proj"),
            ("query", "key", "value"),
            ("q", "k", "v"),
            ("q_lin", "k_lin", "v_lin"),
            ("linear_q", "linear_k", "linear_v"),
            ("to_q", "to_k", "to_v"),
            ("wq", "wk", "wv"),
        ),
    ),
    (
        ("gate_up_proj", "up_gate_proj", "gate_and_up_proj", "w13"),
        (("gate_proj", "up_proj"), ("w1", "w3")),
    ),
)
"""Last components of the names of fused layers → those of the layers that they consist of."""

_OTHERS: dict[str, tuple[str, ...]] = {}
for _whole, _groups in _FUSED:
    _split = tuple(leaf for group in _groups for leaf in group)
    _OTHERS |= dict.fromkeys(_whole, _split) | dict.fromkeys(_split, _whole)

_PARAMETRIZED = {
    "weight": (
        "gamma",
        "weight_g",
        "weight_v",
        "parametrizations.weight.original",
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    ),
    "bias": ("beta",),
}
"""Name of a parameter → names of other parameters of the same module that may hold the same
weight."""

_EXPERTS = re.compile(r"(?P<stack>(?:.*\.)?experts\.)(?P<rest>.+)", re.DOTALL)
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class _Pair:
    """A tensor that the adapter changes, and another tensor that may hold the same weight."""

    changed: str
    other: str


def require_single(disk: Mapping[str, Shape], locations: Locations) -> str | None:
    """Refuse to change a tensor if another tensor of the base may hold the same weight.

    Args:
        disk: shapes of the base's tensors, by their names on the disk.
        locations: the tensors that an adapter changes.

    Returns:
        A sentence for the user if there are copies that transformers does not load, else None.

    Raises:
        SourceError: there is such a tensor. The message has both names.
    """
    changed = _changed(locations)
    pairs = list(_alike(changed, disk))
    loaded = locations.loaded_model or (locations.build() if pairs else None)
    if loaded is None:
        if pairs:
            raise _error(pairs[0])
        return None
    targets = loaded.renamed({*disk, *changed})
    for pair in _conflicts(loaded, targets, changed):
        raise _error(pair)
    for pair in pairs:
        if targets[pair.changed][0] not in loaded.shapes:
            raise _error(pair)
    ignored = [pair.other for pair in pairs if targets[pair.other][0] not in loaded.shapes]
    if not ignored:
        return None
    return (
        f"transformers does not load {few(ignored)} of the base, which may be other forms of "
        "changed weights; they are copied unchanged"
    )


def _changed(locations: Locations) -> dict[str, None]:
    """Return the names on the disk of all tensors that are changed or added, each once."""
    loaded = locations.loaded_model
    changed = [block.tensor for blocks in locations.modules.values() for block in blocks]
    changed += [*locations.tensors.values(), *locations.added.values()]
    if loaded is not None:
        for target in locations.converted.values():
            changed += loaded.sources[target].names
    return dict.fromkeys(changed)


def _alike(changed: Collection[str], disk: Mapping[str, Shape]) -> Iterator[_Pair]:
    """Yield the pairs of tensors that may be the same weight, judged by their names."""
    yield from _of_other_prefix(changed, disk)
    for name in changed:
        yield from (_Pair(name, other) for other in _siblings(name) if other in disk)
    yield from _of_experts(changed, disk)


def _of_other_prefix(changed: Collection[str], disk: Mapping[str, Shape]) -> Iterator[_Pair]:
    lengths = {len(name) for name in changed}
    for name in disk:
        yield from (_Pair(end, name) for end in _ends(name, lengths) if end in changed)
    lengths = {len(name) for name in disk}
    for name in changed:
        yield from (_Pair(name, end) for end in _ends(name, lengths) if end in disk)


def _ends(name: str, lengths: Collection[int]) -> Iterator[str]:
    """Yield the ends of a name that come after a dot and have one of these lengths."""
    position = name.find(".") + 1
    while position:
        if len(name) - position in lengths:
            yield name[position:]
        position = name.find(".", position) + 1


def _siblings(name: str) -> Iterator[str]:
    """Yield names in the same module, or in a module beside it, that may hold the weight `name`."""
    module, _, parameter = name.rpartition(".")
    for other in _PARAMETRIZED.get(parameter, ()):
        yield f"{module}.{other}"
    parent, dot, leaf = module.rpartition(".")
    for other in _OTHERS.get(leaf, ()):
        yield f"{parent}{dot}{other}.{parameter}"
    if leaf in _OTHERS["in_proj"]:
        yield f"{parent}{dot}in_proj_{parameter}"  # of torch.nn.MultiheadAttention


def _of_experts(changed: Collection[str], disk: Mapping[str, Shape]) -> Iterator[_Pair]:
    """Yield pairs of a single expert and the stacked experts."""
    first: dict[tuple[str, bool], str] = {}
    for name, shape in disk.items():
        if match := _EXPERTS.fullmatch(name):
            single = match["rest"][0].isdigit()
            if single or len(shape) == 3:
                first.setdefault((match["stack"], single), name)
    for name in changed:
        if match := _EXPERTS.fullmatch(name):
            other = first.get((match["stack"], not match["rest"][0].isdigit()))
            if other is not None:
                yield _Pair(name, other)


def _conflicts(
    loaded: LoadedModel, targets: Mapping[str, tuple[str, str | None]], changed: Collection[str]
) -> Iterator[_Pair]:
    """Yield pairs of tensors that transformers would load as the same weight.

    Args:
        loaded: the model.
        targets: result of `LoadedModel.renamed` for all names.
        changed: the names that the adapter changes.
    """
    forms: dict[str, list[str]] = {}
    for name, (target, pattern) in targets.items():
        if target in loaded.shapes:
            for each in _loaded_as(loaded, target, pattern):
                forms.setdefault(each, []).append(name)
    for names in forms.values():
        if (
            len(names) > 1
            and any(name in changed for name in names)
            and (pair := _twice(names, targets))
        ):
            mine = next((name for name in pair if name in changed), None)
            other = next(name for name in pair if name != mine)
            yield _Pair(mine or next(name for name in names if name in changed), other)


def _loaded_as(loaded: LoadedModel, target: str, pattern: str | None) -> Iterable[str]:
    """Return the tensors of the loaded model that transformers makes from one tensor on the
    disk."""
    converter = None if pattern is None else loaded.converter(pattern)
    if converter is None:
        return (target,)
    first = converter.target_patterns[0]
    return {target, *(target.replace(first, each) for each in converter.target_patterns)}


def _twice(
    names: Collection[str], targets: Mapping[str, tuple[str, str | None]]
) -> tuple[str, str] | None:
    """Return two of the tensors that become one weight, if one of them would be enough.

    All tensors are needed if they are experts to be stacked, whose names have different numbers, or
    parts to be joined, whose names match different patterns.
    """
    seen: dict[tuple[object, ...], str] = {}
    ways = {targets[name][1] is None for name in names}
    for name in names:
        pattern = targets[name][1]
        numbers = _DIGITS.findall(name) if pattern and "*" in pattern else ()
        key = () if len(ways) > 1 or pattern is None else (pattern, *numbers)
        if key in seen:
            return seen[key], name
        seen[key] = name
    return None


def _error(pair: _Pair) -> SourceError:
    return SourceError(
        "the base's files may hold a weight twice",
        part=pair.changed,
        found=f"{pair.other}, too",
        expected="one copy of every weight that the adapter changes",
        advice=_ADVICE,
    )
