"""Where the tensors that an adapter changes are in a base's files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from vbfmt.converters.names.blocks import Block, of_converted, of_fused
from vbfmt.converters.names.rule import Rule, find_rule
from vbfmt.converters.names.running import Running, Shape
from vbfmt.errors import SourceError
from vbfmt.module import Module


@dataclass(frozen=True)
class Locations:
    """Where the weights and tensors that an adapter changes are in a base's files.

    Attributes:
        modules: module → the blocks of its weight.
        tensors: trained tensor → the tensor on the disk that it replaces.
        composed: trained tensor → the running model's tensor, which is made of several tensors on
            the disk, or of a part of one.
        added: trained tensor that the base lacks → its name in the output.
        rule: how names in the adapter become names on the disk, where one prefix explains it.
        running: the model as transformers builds it, if that was needed.
        notice: what the user should know.
        ask: builds the running model where finding the locations did not need it.
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
        """Return the names, on the disk and in the model, of tied tensors; None if they are not
        known."""
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
) -> Locations:
    """Return the locations in the files of a model that transformers knows.

    Args:
        tensors: shapes of the other trained tensors.
        part: the prefix of names in the running model, if a part was chosen.

    Raises:
        SourceError: a module has no weight in those files.
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
    return Locations(blocks, replaced, composed, added, _rule(blocks, running), running)


def by_rule(
    modules: Collection[Module],
    tensors: Collection[str],
    disk: Mapping[str, Shape],
    *,
    part: str | None = None,
) -> Locations:
    """Return the locations from names alone: those on the disk and those in the adapter may differ
    by one prefix.

    Raises:
        SourceError: as `find_rule`.
    """
    shapes = {module.name: (module.out_features, module.in_features) for module in modules}
    rule = find_rule(shapes, disk, part=part)
    blocks = {module.name: (Block(f"{rule(module.name)}.weight"),) for module in modules}
    replaced, added = {}, {}
    for name in tensors:
        own = (rule(name),) if part is not None else (rule(name), name)
        found = next((each for each in own if each in disk), None)
        if found is None:
            added[name] = name
        else:
            replaced[name] = found
    return Locations(blocks, replaced, {}, added, rule)


def _targets(running: Running, names: Collection[str]) -> dict[str, tuple[str, str | None]]:
    """Return the name in the running model of each name, and the pattern of a conversion, if any.

    That is the name itself, or what transformers renames it to, if it is a name on the disk or of
    an earlier version of transformers.
    """
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
    """Return the one prefix that turns all remaining names into the running model's, or None."""
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
        return of_fused(running, module, weight, source.names[0], pattern)
    if source.converter is None:
        return (Block(source.names[0]),)
    if running.shapes[target] != (module.out_features, module.in_features):
        return None
    return of_converted(running, target)


def _name_on_disk(running: Running, target: str) -> str:
    """Return a name that transformers loads as `target` of the running model."""
    if running.renamed([target])[target][0] == target or target not in running.shapes:
        return target
    raise SourceError(
        "the base lacks a trained tensor, and transformers would rename it",
        part=target,
        found=running.renamed([target])[target][0],
        advice="load the base with the class that was trained, save it, and merge into that",
    )


def _rule(blocks: Mapping[str, tuple[Block, ...]], running: Running) -> Rule:
    """Return the prefix by which names on the disk and in the adapter differ, if that is all."""
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
    """Refuse a missing weight that the model ties to another one."""
    group = next((names for names in running.ties if target in names), frozenset())
    partner = next((name for name in sorted(group) if name in running.sources), None)
    if partner is not None and target not in running.sources:
        raise SourceError(
            "the adapter changes one of two tied tensors",
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
