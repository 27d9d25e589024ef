"""Which tensors the output of a merge has, in which file, and what each is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from vbfmt.converters._files import safetensors
from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.merge import config, refusals
from vbfmt.converters.merge.arithmetic import FLOATS
from vbfmt.converters.merge.base import PICKLE, SAFETENSORS, Base
from vbfmt.converters.merge.names import Rule, find_rule
from vbfmt.errors import SourceError
from vbfmt.module import Module
from vbfmt.tensors import Tensor, byte_length


@dataclass(frozen=True)
class Item:
    """One tensor of the output.

    Attributes:
        name: in the output.
        source: what it begins as: the base's tensor, or a trained one in its place.
        dtype: in the output.
        module: whose B·A is added, if any.
        transposed: the weight is stored as (in, out).
    """

    name: str
    source: Tensor
    dtype: str
    module: Module | None = None
    transposed: bool = False

    @property
    def size(self) -> int:
        """Bytes in the output."""
        return byte_length(self.dtype, self.source.shape) or 0

    @property
    def copied(self) -> bool:
        """Whether its bytes are those of its source."""
        return self.module is None and self.dtype == self.source.dtype


@dataclass(frozen=True)
class File:
    """One file of weights of the output: its tensors in order, and its metadata."""

    name: str
    items: tuple[Item, ...]
    metadata: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(item.size for item in self.items)

    @property
    def changed(self) -> int:
        """How many of its tensors get a B·A."""
        return sum(item.module is not None for item in self.items)

    @cached_property
    def header(self) -> bytes:
        """What the file begins with."""
        specs = [(item.name, item.dtype, item.source.shape) for item in self.items]
        return safetensors.header(specs, self.metadata)


@dataclass(frozen=True)
class Layout:
    """The weights of the output, and how they came about.

    Attributes:
        files: in the order of the base's.
        rule: how the adapter's names became the base's.
        prefix: what all of the base's names get in front, so that a head that is added can stand
            beside them.
        replaced: tensors of the base, by its names, that trained ones take the place of.
        added: trained tensors that the base lacks, by the output's names.
    """

    files: tuple[File, ...]
    rule: Rule
    prefix: str
    replaced: tuple[str, ...]
    added: tuple[str, ...]

    @property
    def applied(self) -> int:
        """How many modules of the adapter have changed a weight."""
        return sum(file.changed for file in self.files)


def layout(base: Base, adapter: LowRank, dtype: str | None) -> Layout:
    """Find a place for everything that the adapter brings.

    Args:
        dtype: safetensors name of the dtype of all floating-point tensors; None for the base's own.

    Raises:
        SourceError: not all of it has one.
    """
    try:
        rule = find_rule([module.name for module in adapter.modules], base.tensors)
    except SourceError as error:
        refusals.require_untied_modules(base, adapter)
        raise error.in_file(base.path) from None
    touched = _touched(base, adapter, rule)
    places = {name: _place(name, base, rule) for name in adapter.tensors}
    replaced = {place: adapter.tensors[name] for name, place in places.items() if place is not None}
    _require_one_each(places, base)
    _require_fit(replaced, base, adapter)
    new = [name for name, place in places.items() if place is None]
    for name in new:
        refusals.require_untied(base, name, adapter.tensors[name], adapter, added=True)
    # A head beside a base that lacks the model's prefix: the output is the whole model.
    prefix = rule.drop if any(rule(name) is None for name in new) else ""
    added = {
        name if rule(name) is None else f"{prefix}{rule(name)}": adapter.tensors[name]
        for name in new
    }
    files = []
    for shard in base.shards:
        items = []
        for name, tensor in shard.tensors.items():
            module, transposed = touched.get(name, (None, False))
            source = replaced.get(name, tensor)
            kept = dtype if dtype and tensor.dtype in FLOATS else tensor.dtype
            items.append(Item(prefix + name, source, kept, module, transposed))
        files.append((_as_safetensors(shard.name), items, shard.metadata))
    for name, tensor in added.items():
        kept = (dtype or _usual_dtype(base)) if tensor.dtype in FLOATS else tensor.dtype
        files[-1][1].append(Item(name, tensor, kept))
    return Layout(
        files=tuple(
            File(name, tuple(items), {"format": "pt", **metadata})
            for name, items, metadata in files
        ),
        rule=rule,
        prefix=prefix,
        replaced=tuple(replaced),
        added=tuple(added),
    )


def _touched(base: Base, adapter: LowRank, rule: Rule) -> dict[str, tuple[Module, bool]]:
    """The base's weights that get a B·A: each with its module, and whether it is (in, out)."""
    weights = {}
    for module in adapter.modules:
        name = f"{rule(module.name)}.weight"
        weights[module] = name, base.tensors[name]
        refusals.require_float(name, base.tensors[name], base)
        refusals.require_untied(base, name, base.tensors[name], adapter, added=False)
    ways = refusals.orientations(weights, base)
    return {name: (module, ways[module]) for module, (name, _) in weights.items()}


def _place(name: str, base: Base, rule: Rule) -> str | None:
    """The base's tensor whose place a trained one takes, if there is one."""
    return next((place for place in (rule(name), name) if place in base.tensors), None)


def _require_one_each(places: Mapping[str, str | None], base: Base) -> None:
    for place, count in Counter(filter(None, places.values())).items():
        if count > 1:
            raise SourceError("two trained tensors for one place", file=base.path, part=place)


def _require_fit(replaced: Mapping[str, Tensor], base: Base, adapter: LowRank) -> None:
    """Trained tensors have their places' shapes; only a classifier may have other labels."""
    before, after = config.labels(base.config), config.trained_labels(adapter)
    for name, tensor in replaced.items():
        old = base.tensors[name]
        refusals.require_untied(base, name, old, adapter, added=False)
        relabelled = config.is_head(name) and (old.shape[:1], tensor.shape[:1]) == (
            (before,),
            (after,),
        )
        same_shape = old.shape == tensor.shape or (relabelled and old.shape[1:] == tensor.shape[1:])
        same_kind = old.dtype == tensor.dtype or {old.dtype, tensor.dtype} <= set(FLOATS)
        if not (same_shape and same_kind):
            raise SourceError(
                "a trained tensor does not fit the base",
                file=base.path,
                part=name,
                found=old,
                expected=tensor,
                advice="is this the base that the adapter was trained on?",
            )


def _usual_dtype(base: Base) -> str:
    """The dtype of floating point that most of the base's bytes have."""
    sizes: Counter[str] = Counter()
    for tensor in base.tensors.values():
        if tensor.dtype in FLOATS:
            sizes[tensor.dtype] += tensor.data.size
    return max(sizes, key=lambda dtype: sizes[dtype])


def _as_safetensors(name: str) -> str:
    """The name of a file of weights in the output, which has no pickles."""
    stem = name.removesuffix(".safetensors").removesuffix(".bin")
    old, new = (whole.rpartition(".")[0] for whole in (PICKLE, SAFETENSORS))
    return f"{new if stem == old else stem.replace(f'{old}-', f'{new}-', 1)}.safetensors"
