"""Find the locations in a base's files of the tensors that an adapter changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from vbfmt.converters.names.blocks import Block, of_converted, of_fused
from vbfmt.converters.names.loaded_model import LoadedModel, Shape
from vbfmt.converters.names.rule import Rule, find_rule
from vbfmt.errors import SourceError, few
from vbfmt.module import Module


@dataclass(frozen=True)
class Locations:
    """Where the weights and tensors that an adapter changes are in a base's files.

    Attributes:
        modules: module's name → the blocks of its weight.
        tensors: trained tensor's name → name of the tensor on the disk that it replaces.
        converted: trained tensor's name → its name in the loaded model, for tensors that consist of
            several tensors on the disk, or of a part of one.
        added: name of a trained tensor that the base lacks → its name in the output.
        rule: how names in the adapter become names on the disk.
        loaded_model: the model as transformers builds it, if it was built.
        notice: a sentence for the user, or None.
        build: a function that builds `loaded_model` when it is needed, and returns None if it
            cannot.
    """

    modules: Mapping[str, tuple[Block, ...]]
    tensors: Mapping[str, str]
    converted: Mapping[str, str]
    added: Mapping[str, str]
    rule: Rule
    loaded_model: LoadedModel | None = None
    notice: str | None = None
    build: Callable[[], LoadedModel | None] = field(default=lambda: None)

    def tied(self) -> frozenset[str] | None:
        """Return the names of tied tensors, on the disk and in the loaded model.

        Returns:
            The names, or None if they are unknown because transformers cannot build the model.
        """
        loaded = self.loaded_model or self.build()
        if loaded is None:
            return None
        groups = set().union(*loaded.ties)
        sources = (loaded.sources.get(name) for name in groups)
        return frozenset(groups.union(*(source.names for source in sources if source)))


def in_loaded_model(
    loaded: LoadedModel,
    modules: Collection[Module],
    tensors: Mapping[str, Shape],
    *,
    part: str | None = None,
) -> Locations:
    """Return the locations in the files of a model that transformers can build.

    Args:
        loaded: the model.
        modules: the adapter's modules.
        tensors: shapes of the other trained tensors, by name.
        part: prefix of the names of one part of the loaded model, to search only in it.

    Raises:
        SourceError: a module has no weight in the files.
    """
    front = part or ""
    weights = {module.name: f"{front}{module.name}.weight" for module in modules}
    targets = _targets(loaded, [*weights.values(), *(front + name for name in tensors)])
    blocks = {}
    missing = []
    for module in modules:
        target, pattern = targets[weights[module.name]]
        found = _blocks(loaded, module, weights[module.name], target, pattern)
        if found is None:
            missing.append(module.name)
        else:
            blocks[module.name] = found
    if missing:
        raise _no_weight(loaded, missing, len(blocks), len(modules))
    replaced, converted, added = {}, {}, {}
    for name in tensors:
        target, _ = targets[front + name]
        source = loaded.sources.get(target)
        if source is None:
            added[name] = _name_on_disk(loaded, target)
        elif source.converter is None:
            replaced[name] = source.names[0]
        else:
            converted[name] = target
    return Locations(blocks, replaced, converted, added, _rule(blocks, loaded), loaded)


def by_rule(
    modules: Collection[Module],
    tensors: Collection[str],
    disk: Mapping[str, Shape],
    *,
    part: str | None = None,
) -> Locations:
    """Return the locations by comparing names, which may differ by one prefix.

    Args:
        modules: the adapter's modules.
        tensors: names of the other trained tensors.
        disk: shapes of the base's tensors, by their names on the disk.
        part: prefix of the names of one part of the base, to search only in it.

    Raises:
        SourceError: as in `find_rule`.
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


def _targets(loaded: LoadedModel, names: Collection[str]) -> dict[str, tuple[str, str | None]]:
    """Return the name of each tensor in the loaded model, and the pattern of its converter or None.

    If the loaded model does not have a name, it is renamed as transformers would rename it, because
    it may be a name on the disk or from an earlier version of transformers. If this fails, a prefix
    is tried.
    """
    renamed = loaded.renamed(names)
    result: dict[str, tuple[str, str | None]] = {}
    for name in names:
        there = name in loaded.shapes
        result[name] = (name, None) if there else renamed[name]
    lost = [n for n, (target, pattern) in result.items() if target not in loaded.shapes]
    if lost and (rule := _prefix(loaded, lost)):
        result.update({name: (str(rule(name)), None) for name in lost if rule(name)})
    return result


def _prefix(loaded: LoadedModel, lost: Collection[str]) -> Rule | None:
    """Return a rule that converts all lost names to names of the loaded model, or None."""
    weights = [name.removesuffix(".weight") for name in lost if name.endswith(".weight")]
    try:
        return find_rule(weights, loaded.shapes) if weights else None
    except SourceError:
        return None


def _blocks(
    loaded: LoadedModel, module: Module, weight: str, target: str, pattern: str | None
) -> tuple[Block, ...] | None:
    """Return the blocks of a module's weight, or None if the base's files do not have it.

    Args:
        loaded: the model.
        module: the adapted module.
        weight: the name of its weight in the adapter.
        target: the weight's name in the loaded model.
        pattern: the pattern of the converter that `weight` matches, if any.
    """
    source = loaded.sources.get(target)
    if target not in loaded.shapes:
        return (Block(weight),) if weight in loaded.disk else None
    if source is None:
        return None
    if weight in source.names and target != weight and source.converter is not None:
        return (Block(weight),)  # the adapter has the names on the disk
    if pattern is not None:
        return of_fused(loaded, module, weight, source.names[0], pattern)
    if source.converter is None:
        return (Block(source.names[0]),)
    if loaded.shapes[target] != (module.out_features, module.in_features):
        return None
    return of_converted(loaded, target)


def _name_on_disk(loaded: LoadedModel, target: str) -> str:
    """Return the name on the disk with which a tensor is loaded as `target`.

    Raises:
        SourceError: transformers would rename `target` when it loads it.
    """
    if loaded.renamed([target])[target][0] == target or target not in loaded.shapes:
        return target
    raise SourceError(
        "the base lacks a trained tensor, and transformers would rename it",
        part=target,
        found=loaded.renamed([target])[target][0],
        advice="load the base with the class that was trained, save it, and merge into that",
    )


def _rule(blocks: Mapping[str, tuple[Block, ...]], loaded: LoadedModel) -> Rule:
    """Return the rule for the prefix by which names on the disk and in the adapter differ.

    If they differ by more than a prefix, return a rule with `mapped` set. It drops the model's own
    prefix if the names in the adapter have it and those in the base do not.
    """
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
    own = f"{loaded.model.base_model_prefix}."
    bare = not any(name.startswith(own) for name in loaded.shapes)
    dropped = own if bare and all(name.startswith(own) for name in blocks) else ""
    return Rule(drop=dropped, mapped=True)


def _no_weight(loaded: LoadedModel, missing: list[str], found: int, total: int) -> SourceError:
    return SourceError(
        f"{found} of the adapter's {total} modules are in the base",
        part="names",
        found=f"no weight for {few(missing)} in {type(loaded.model).__name__}",
        expected="a weight for every module of the adapter",
        advice="nothing was written; is this the base that the adapter was trained on?",
    )
