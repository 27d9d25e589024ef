"""Where the tensors that an adapter changes lie in a base's files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vbfmt.converters.names.rule import Rule, find_rule
from vbfmt.converters.names.running import Running, Shape, number_in
from vbfmt.errors import SourceError
from vbfmt.module import Module

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """Where a module's weight, or some rows of it, lies in a tensor on the disk.

    Attributes:
        tensor: its name.
        rows, columns: for each row and column of the weight (as it is in the running model, without
            those that lie in other tensors) its position in the tensor; None if the tensor is the
            weight.
        own_rows: which rows of the weight these are.
        turned: rows of the weight are columns of the tensor.
        index: of the matrix, in a tensor of three dimensions.
    """

    tensor: str
    rows: Positions | None = None
    columns: Positions | None = None
    own_rows: Positions | None = None
    turned: bool = False
    index: int | None = None


@dataclass(frozen=True)
class Places:
    """Where everything that an adapter brings belongs in a base's files.

    Attributes:
        modules: of each module its weight's blocks.
        tensors: trained tensor → the one on the disk that it replaces, or None.
        composed: trained tensor → the running model's, made of several on the disk or of a part.
        added: trained tensor → its name in the output, of those that the base lacks.
        rule: how names in the adapter became the disk's, where one prefix explains it.
        running: the model that told, if transformers was asked.
        notice: what the user should know.
        ask: has transformers tell the model where that was not needed to find the places.
    """

    modules: Mapping[str, tuple[Block, ...]]
    tensors: Mapping[str, str]
    composed: Mapping[str, str]
    added: Mapping[str, str]
    rule: Rule
    running: Running | None = None
    notice: str | None = None
    ask: Callable[[], Running | None] = field(default=lambda: None)

    def tied(self) -> frozenset[str] | None:
        """Names on the disk and in the model of tensors that the model keeps equal; None if that
        cannot be known."""
        running = self.running or self.ask()
        if running is None:
            return None
        groups = set().union(*running.ties)
        sources = (running.sources.get(name) for name in groups)
        return frozenset(groups.union(*(source.names for source in sources if source)))


def in_running(
    running: Running,
    modules: Collection[Module],
    tensors: Mapping[str, Shape],
    *,
    part: str | None = None,
) -> Places:
    """The places in the files of a model that transformers knows.

    Args:
        tensors: shapes of the other trained tensors.
        part: what names have in front there, where that was chosen.

    Raises:
        SourceError: a module has no weight there.
    """
    front = part or ""
    weights = {module.name: f"{front}{module.name}.weight" for module in modules}
    targets = _targets(running, [*weights.values(), *(front + name for name in tensors)])
    blocks = {}
    missing = []
    for module in modules:
        target, pattern = targets[weights[module.name]]
        found = _blocks(running, module, weights[module.name], target, pattern)
        if found is None:
            missing.append(module.name)
        else:
            blocks[module.name] = found
    if missing:
        for name in missing:
            _require_untied(running, weights[name], targets[weights[name]][0])
        raise _no_weight(running, missing, len(blocks), len(modules))
    replaced, composed, added = {}, {}, {}
    for name in tensors:
        target, _ = targets[front + name]
        source = running.sources.get(target)
        if source is None:
            added[name] = _name_on_disk(running, target)
        elif source.converter is None:
            replaced[name] = source.names[0]
        else:
            composed[name] = target
    return Places(blocks, replaced, composed, added, _rule(blocks, running), running)


def by_rule(
    modules: Collection[Module],
    tensors: Collection[str],
    disk: Mapping[str, Shape],
    *,
    part: str | None = None,
) -> Places:
    """The places by what names on the disk have in front and the adapter's have not, or the other
    way round.

    Raises:
        SourceError: as `find_rule`.
    """
    shapes = {module.name: (module.out_features, module.in_features) for module in modules}
    rule = find_rule(shapes, disk, part=part)
    blocks = {module.name: (Block(f"{rule(module.name)}.weight"),) for module in modules}
    replaced, added = {}, {}
    for name in tensors:
        own = (rule(name),) if part is not None else (rule(name), name)
        place = next((each for each in own if each in disk), None)
        if place is None:
            added[name] = name
        else:
            replaced[name] = place
    return Places(blocks, replaced, {}, added, rule)


def _targets(running: Running, names: Collection[str]) -> dict[str, tuple[str, str | None]]:
    """Each name's in the running model: itself, or what transformers makes of it, where it is one
    of an earlier version of transformers or of the disk."""
    renamed = running.renamed(names)
    result: dict[str, tuple[str, str | None]] = {}
    for name in names:
        there = name in running.shapes
        result[name] = (name, None) if there else renamed[name]
    lost = [n for n, (target, pattern) in result.items() if target not in running.shapes]
    if lost and (rule := _prefix(running, lost)):
        result.update({name: (str(rule(name)), None) for name in lost if rule(name)})
    return result


def _prefix(running: Running, lost: Collection[str]) -> Rule | None:
    """The one prefix by which the names that are left become the running model's, if there is."""
    weights = [name.removesuffix(".weight") for name in lost if name.endswith(".weight")]
    try:
        return find_rule(weights, running.shapes) if weights else None
    except SourceError:
        return None


def _blocks(
    running: Running, module: Module, weight: str, target: str, pattern: str | None
) -> tuple[Block, ...] | None:
    source = running.sources.get(target)
    if target not in running.shapes:
        return (Block(weight),) if weight in running.disk else None
    if source is None:
        return None
    if weight in source.names and target != weight and source.converter is not None:
        return (Block(weight),)  # the adapter's names are the disk's
    if pattern is not None:
        return _of_fused(running, module, weight, source.names[0], pattern)
    if source.converter is None:
        return (Block(source.names[0]),)
    if running.shapes[target] != (module.out_features, module.in_features):
        return None
    return _of_converted(running, target)


def _of_converted(running: Running, target: str) -> tuple[Block, ...]:
    """A weight that transformers makes of one or several tensors by moving their elements."""
    source = running.sources[target]
    try:
        numbers = running.indices(target)
    except Exception as error:  # noqa: BLE001 - whatever its operations have against this base
        raise SourceError(
            "no telling where a weight lies in the base's files", part=target, found=error
        ) from None
    start = 0
    blocks = []
    for name in source.names:
        shape = running.disk[name]
        count = int(np.prod(shape, dtype=np.int64))
        block = _block(name, numbers, start, shape)
        if block is not None:
            blocks.append(block)
        start += count
    return tuple(blocks)


def _block(name: str, numbers: Positions, start: int, shape: Shape) -> Block | None:
    """The rows of a weight (out, in), given by numbers, that lie in one tensor on the disk."""
    count = int(np.prod(shape, dtype=np.int64))
    inside = (numbers >= start) & (numbers < start + count)
    own = np.flatnonzero(inside.all(axis=1)) if numbers.ndim == 2 else np.empty(0, np.int64)
    if inside.sum() != own.size * numbers.shape[-1] or len(shape) != 2:
        raise SourceError(
            "a weight lies in the base's files in a way that is not known",
            part=name,
            found=list(shape),
            advice="load the base with transformers and save it with save_original_format=False",
        )
    if not own.size:
        return None
    part = numbers[own] - start
    first, second = part // shape[1], part % shape[1]
    for turned, (along, across) in ((False, (first, second)), (True, (second, first))):
        rows, columns = along[:, 0], across[0]
        if (along == rows[:, None]).all() and (across == columns).all():
            return Block(name, rows, columns, own, turned)
    raise SourceError("a weight's elements lie in no order that is known", part=name)


def _of_fused(
    running: Running, module: Module, weight: str, fused: str, pattern: str
) -> tuple[Block, ...] | None:
    """An expert's weight in the tensor that holds all experts.

    What transformers would do to single experts is done to numbers of their rows.
    """
    import torch

    if fused not in running.disk:
        return None
    converter, number = running.converter(pattern), number_in(pattern, weight)
    shape = running.disk[fused]
    if converter is None or number is None or len(shape) != 3 or number >= shape[0]:
        return None
    from copy import deepcopy

    mine = deepcopy(converter)
    rows = module.out_features
    start, wanted = 0, None
    for each in mine.source_patterns:
        for expert in range(shape[0]):
            numbers = torch.arange(start, start + rows).reshape(rows, 1)
            mine.add_tensor(fused, f"{each}{expert}", each, numbers)
            if each == pattern and expert == number:
                wanted = start
            start += rows
    try:
        made = mine.convert(fused, model=running.model, config=running.model.config)
    except Exception:  # noqa: BLE001 - whatever its operations have against it
        return None
    value = next(iter(made.values()))
    found = (value[0] if isinstance(value, list) else value).numpy()
    if found.ndim != 3 or wanted is None:
        return None
    turned = found.shape[1] == 1 and rows != 1
    expected = (shape[0], 1, shape[2]) if turned else (*shape[:2], 1)
    width = shape[1] if turned else shape[2]
    index, *others = np.nonzero((found >= wanted) & (found < wanted + rows))
    if found.shape != expected or width != module.in_features or len(set(index.tolist())) != 1:
        return None
    along = others[1] if turned else others[0]
    values = found[index, others[0], others[1]] - wanted
    positions = np.empty(rows, np.int64)
    positions[values] = along
    return (
        Block(
            fused,
            positions,
            np.arange(width, dtype=np.int64),
            np.arange(rows, dtype=np.int64),
            turned,
            int(index[0]),
        ),
    )


def _name_on_disk(running: Running, target: str) -> str:
    """A name that transformers takes for `target` of the running model."""
    if running.renamed([target])[target][0] == target or target not in running.shapes:
        return target
    raise SourceError(
        "the base lacks a trained tensor, and transformers would take its name for another's",
        part=target,
        found=running.renamed([target])[target][0],
        advice="load the base with the class that was trained, save it, and merge into that",
    )


def _rule(blocks: Mapping[str, tuple[Block, ...]], running: Running) -> Rule:
    """What the disk's names have in front of the adapter's, or these of those, if one prefix is all
    that differs."""
    rules = set()
    for name, (block, *_) in blocks.items():
        disk = block.tensor.removesuffix(".weight")
        if disk.endswith(name):
            rules.add(Rule(add=disk[: -len(name)]))
        elif name.endswith(f".{disk}"):
            rules.add(Rule(drop=name[: -len(disk)]))
    alike = len(rules) == 1 and all(
        rule(name) == blocks[name][0].tensor.removesuffix(".weight")
        for rule in rules
        for name in blocks
    )
    if alike:
        return rules.pop()
    own = f"{running.model.base_model_prefix}."
    bare = not any(name.startswith(own) for name in running.shapes)
    dropped = own if bare and all(name.startswith(own) for name in blocks) else ""
    return Rule(drop=dropped, mapped=True)


def _require_untied(running: Running, weight: str, target: str) -> None:
    """A weight that is missing is not one that the model has under another name, too."""
    group = next((names for names in running.ties if target in names), frozenset())
    partner = next((name for name in sorted(group) if name in running.sources), None)
    if partner is not None and target not in running.sources:
        raise SourceError(
            "the adapter changes one of two tensors that the model keeps equal",
            part=weight,
            found=f"tied to {partner}",
            expected="a weight of its own in the base",
            advice="untie the base first (save it with both tensors, tie_word_embeddings false)",
        )


def _no_weight(running: Running, missing: list[str], found: int, of: int) -> SourceError:
    listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
    return SourceError(
        f"{found} of {of} modules applied",
        part="names",
        found=f"no weight for {listed} in {type(running.model).__name__}",
        expected="a weight for every module of the adapter",
        advice="nothing was written; is this the base that the adapter was trained on?",
    )
