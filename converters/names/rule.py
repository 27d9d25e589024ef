"""Map names of modules in an adapter to names of tensors in a base.

The names in a file and in the loaded model may differ by the model's own prefix: a BERT that was
saved without a head has ``encoder.layer.0…``, while a classifier has ``bert.encoder.layer.0…``. The
prefix is found by comparing the names. The same rule applies to all modules of the adapter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from vbfmt._similar import nearest
from vbfmt.errors import SourceError

_LISTED = 5


@dataclass(frozen=True)
class Rule:
    """A rule that converts names in the adapter to names in the base.

    Attributes:
        add: a prefix, such as ``model.``, that only the base has.
        drop: a prefix that only the adapter has.
        mapped: whether transformers maps the names, because they differ by more than a prefix.
    """

    add: str = ""
    drop: str = ""
    mapped: bool = False

    def __call__(self, name: str) -> str | None:
        """Return the base's name, or None if the rule does not apply."""
        if not name.startswith(self.drop):
            return None
        return self.add + name[len(self.drop) :]

    def __str__(self) -> str:
        if self.mapped:
            return "transformers maps the adapter's names to the base's"
        if self.add:
            return f"the base's names begin with {self.add!r}, the adapter's do not"
        if self.drop:
            return f"the adapter's names begin with {self.drop!r}, the base's do not"
        return "names are the same"


class SeveralPartsError(SourceError):
    """Modules match several parts of a base, and neither names nor shapes show which part is
    meant."""


def find_rule(
    modules: Collection[str], tensors: Collection[str], *, part: str | None = None
) -> Rule:
    """Return the rule with which every module has its ``.weight`` among `tensors`.

    If the names are equal, no other rule is considered.

    Args:
        modules: names of the adapter's modules, or a mapping of names to shapes (out, in).
        tensors: names of the base's tensors, or a mapping of names to shapes. If both arguments are
            mappings and the names match several parts of the base, the shapes decide.
        part: prefix of the base's names that selects a part of it.

    Raises:
        SourceError: no rule gives every module a weight. The message lists modules that have no
            weight with the best rule, and similar names.
        SeveralPartsError: several rules give every module a weight.
    """
    owners = {name.removesuffix(".weight") for name in tensors if name.endswith(".weight")}
    counts = _counts(modules, owners)
    if part is not None:
        return _of_part(Rule(add=part), modules, owners, counts)
    if counts[Rule()] == len(modules):
        return Rule()
    full = [rule for rule, count in counts.items() if count == len(modules)]
    if len(full) > 1 and isinstance(modules, Mapping) and isinstance(tensors, Mapping):
        full = [rule for rule in full if _fits(rule, modules, tensors)] or full
    if len(full) == 1:
        return full[0]
    if full:
        raise SeveralPartsError(
            "the adapter's modules match several parts of the base",
            part="names",
            found="; ".join(sorted(str(rule) for rule in full)),
            expected="one",
            advice="choose one by the prefix of its names: `part=PREFIX`",
        )
    raise _unmatched(modules, owners, counts)


def _of_part(rule: Rule, modules: Collection[str], owners: set[str], counts: Counter[Rule]) -> Rule:
    if all(rule(module) in owners for module in modules):
        return rule
    error = _unmatched(modules, owners, counts)
    error.expected = f"a weight for every module in the part {rule.add!r} of the base"
    raise error


def _fits(
    rule: Rule, modules: Mapping[str, tuple[int, int]], tensors: Mapping[str, tuple[int, ...]]
) -> bool:
    return all(
        tensors[f"{rule(name)}.weight"] in (shape, shape[::-1]) for name, shape in modules.items()
    )


def _counts(modules: Iterable[str], owners: set[str]) -> Counter[Rule]:
    """Return the number of modules that have a weight, for each possible rule."""
    counts: Counter[Rule] = Counter({Rule(): 0})
    wanted = set(modules)
    for owner in owners:  # count only endings that are modules: hostile names have very many dots
        counts.update(Rule(add=prefix) for prefix, rest in splits(owner) if rest in wanted)
    for module in wanted:
        counts[Rule()] += module in owners
        counts.update(Rule(drop=prefix) for prefix, rest in splits(module) if rest in owners)
    return counts


def splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield the splits of a name: (``a.``, ``b.c``) and (``a.b.``, ``c``) of ``a.b.c``."""
    position = name.find(".") + 1
    while position:
        yield name[:position], name[position:]
        position = name.find(".", position) + 1


def _unmatched(modules: Collection[str], owners: set[str], counts: Counter[Rule]) -> SourceError:
    best = max(counts, key=lambda rule: (counts[rule], rule == Rule()))
    left = [module for module in modules if best(module) not in owners]
    listed = [
        f"{module} (nearest: {', '.join(_nearest(best(module) or module, owners)) or 'none'})"
        for module in left[:_LISTED]
    ]
    more = f" and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
    return SourceError(
        f"{counts[best]} of the adapter's {len(modules)} modules are in the base",
        part="names",
        found=f"no weight for {'; '.join(listed)}{more}",
        expected="a weight for every module of the adapter",
        advice="nothing was written; is this the base that the adapter was trained on?",
    )


def _nearest(name: str, owners: set[str]) -> list[str]:
    leaf = name.rpartition(".")[2]
    alike = sorted(owner for owner in owners if owner.rpartition(".")[2] == leaf) or sorted(owners)
    return nearest(name, alike, 2, cutoff=0.5)
