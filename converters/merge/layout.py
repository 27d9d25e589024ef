"""Lay out the output of a merge: its files, their tensors, and what each tensor is computed
from."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from vbfmt.converters._files import safetensors
from vbfmt.converters.lowrank import LowRank
from vbfmt.converters.merge import config, converted, refusals, rounding
from vbfmt.converters.merge.arithmetic import FLOATS
from vbfmt.converters.merge.base import PICKLE, SAFETENSORS, Base
from vbfmt.converters.names import locate
from vbfmt.converters.names.blocks import Block
from vbfmt.converters.names.locations import Locations
from vbfmt.converters.names.rule import Rule
from vbfmt.errors import SourceError
from vbfmt.module import Module
from vbfmt.tensors import Tensor, byte_length


@dataclass(frozen=True)
class Part:
    """A module's weight, or some rows of it, in a tensor.

    Attributes:
        module: the adapted module.
        block: the rows of its weight, and their position in the tensor.
    """

    module: Module
    block: Block


@dataclass(frozen=True)
class Item:
    """One tensor of the output.

    Attributes:
        name: its name in the output.
        source: the base's tensor, or the trained tensor that replaces it.
        dtype: safetensors name of its dtype in the output.
        parts: the modules whose B·A are added. Only fused tensors hold the weights of several.
    """

    name: str
    source: Tensor
    dtype: str
    parts: tuple[Part, ...] = ()

    @property
    def size(self) -> int:
        """Number of bytes in the output."""
        return byte_length(self.dtype, self.source.shape) or 0

    @property
    def modules(self) -> set[str]:
        """Names of the modules whose B·A is added to the tensor."""
        return {part.module.name for part in self.parts}

    @property
    def copied(self) -> bool:
        """Whether the output has the same bytes as `source`."""
        return not self.parts and self.dtype == self.source.dtype


@dataclass(frozen=True)
class File:
    """One weight file of the output: its tensors in order, and its metadata."""

    name: str
    items: tuple[Item, ...]
    metadata: Mapping[str, str]

    @property
    def size(self) -> int:
        """Number of bytes of its tensors, without the header."""
        return sum(item.size for item in self.items)

    @cached_property
    def header(self) -> bytes:
        """The bytes of the file's safetensors header."""
        specs = [(item.name, item.dtype, item.source.shape) for item in self.items]
        return safetensors.header(specs, self.metadata)


@dataclass(frozen=True)
class Layout:
    """The weight files of the output, and how the adapter's names were matched to the base's.

    Attributes:
        files: the weight files, in the base's order.
        rule: how a name in the adapter becomes a name in the base.
        prefix: prefix that is added to all the base's names in the output, because a model with an
            added head has them with this prefix.
        replaced: names in the base of the tensors that trained tensors replace.
        added: names in the output of the trained tensors that the base lacks.
        notice: a sentence about the names for the user, if there is one.
    """

    files: tuple[File, ...]
    rule: Rule
    prefix: str
    replaced: tuple[str, ...]
    added: tuple[str, ...]
    notice: str | None = None

    @property
    def applied(self) -> int:
        """Number of the adapter's modules that change a weight."""
        return len({name for file in self.files for item in file.items for name in item.modules})


def layout(base: Base, adapter: LowRank, dtype: str | None, *, part: str | None = None) -> Layout:
    """Find the tensors of the base that the adapter changes, and lay out the output.

    Args:
        base: the base model.
        adapter: the factors and other trained tensors to merge.
        dtype: safetensors name of the dtype for all floating-point tensors; None to keep the base's
            dtypes.
        part: as for `vbfmt.converters.names.locate`.

    Raises:
        SourceError: a module or a trained tensor of the adapter has no tensor in the base, or the
            tensor does not fit.
        TargetError: all values of a matrix that the adapter does not change are too small for the
            output's dtype.
    """
    try:
        locations = locate(base.tensors, base.config, adapter, part=part)
    except SourceError as error:
        refusals.require_untied_modules(base, adapter)
        raise error.in_file(base.path) from None
    touched = _touched(base, adapter, locations)
    replaced = _replaced(base, adapter, locations)
    prefix, added = _added(base, adapter, locations)
    items = [
        [
            replace(
                touched.get(name) or Item(name, tensor, tensor.dtype),
                name=prefix + name,
                source=replaced.get(name, tensor),
                dtype=dtype if dtype and tensor.dtype in FLOATS else tensor.dtype,
            )
            for name, tensor in shard.tensors.items()
        ]
        for shard in base.shards
    ]
    for name, tensor in added.items():
        is_float = tensor.dtype in FLOATS
        items[-1].append(
            Item(name, tensor, (dtype or _usual_dtype(base)) if is_float else tensor.dtype)
        )
    for item in itertools.chain(*items):
        if not item.parts:
            rounding.require_kept(item.source, item.name, item.dtype)
    return Layout(
        files=tuple(
            File(_as_safetensors(shard.name), tuple(inside), {"format": "pt", **shard.metadata})
            for shard, inside in zip(base.shards, items, strict=True)
        ),
        rule=locations.rule,
        prefix=prefix,
        replaced=tuple(replaced),
        added=tuple(added),
        notice=locations.notice,
    )


def _touched(base: Base, adapter: LowRank, locations: Locations) -> dict[str, Item]:
    """Return an item for each tensor of the base that a B·A is added to, by name."""
    whole: dict[Module, tuple[str, Tensor]] = {}
    parts: dict[str, list[Part]] = {}
    for module in adapter.modules:
        for block in locations.modules[module.name]:
            tensor = base.tensors[block.tensor]
            refusals.require_float(block.tensor, tensor, base)
            refusals.require_untied(
                base, block.tensor, tensor, adapter, added=False, tied=locations.tied
            )
            if block.rows is None:
                whole[module] = block.tensor, tensor
            parts.setdefault(block.tensor, []).append(Part(module, block))
    for module, transposed in refusals.orientations(whole, base).items():
        name, _ = whole[module]
        if len(parts[name]) > 1:
            raise SourceError(
                "two modules of the adapter change the same weight", file=base.path, part=name
            )
        parts[name] = [Part(module, Block(name, transposed=transposed))]
    return {
        name: Item(name, base.tensors[name], base.tensors[name].dtype, tuple(inside))
        for name, inside in parts.items()
    }


def _replaced(base: Base, adapter: LowRank, locations: Locations) -> dict[str, Tensor]:
    """Return the trained tensors that replace tensors of the base, by their names in the base."""
    replaced: dict[str, Tensor] = {}
    for name, target in locations.tensors.items():
        _replace(target, adapter.tensors[name], replaced, base)
    _require_fit(replaced, base, adapter, locations)
    trained = {target: adapter.tensors[name] for name, target in locations.converted.items()}
    for name, tensor in converted.tensors(base, locations, trained).items():
        _replace(name, tensor, replaced, base)
    return replaced


def _replace(name: str, tensor: Tensor, replaced: dict[str, Tensor], base: Base) -> None:
    """Add a trained tensor to `replaced`, unless another one replaces the same tensor."""
    if name in replaced:
        raise SourceError(
            "two trained tensors replace one tensor of the base", file=base.path, part=name
        )
    replaced[name] = tensor


def _added(base: Base, adapter: LowRank, locations: Locations) -> tuple[str, dict[str, Tensor]]:
    """Return the prefix for the base's names in the output, and the tensors to add, by their new
    names.

    If a head was trained and the base was saved without one, the base's names lack the model's
    prefix. The output is the whole model, so its names have the prefix.
    """
    new = [name for name in adapter.tensors if name in locations.added]
    for name in new:
        refusals.require_untied(
            base, name, adapter.tensors[name], adapter, added=True, tied=locations.tied
        )
    inner = {name: locations.added[name] for name in new}
    below = {name: locations.rule(inner[name]) for name in new}
    prefix = locations.rule.drop if None in below.values() else ""
    named = {name: inner[name] if below[name] is None else f"{prefix}{below[name]}" for name in new}
    return prefix, {named[name]: adapter.tensors[name] for name in new}


def _require_fit(
    replaced: Mapping[str, Tensor], base: Base, adapter: LowRank, locations: Locations
) -> None:
    """Refuse trained tensors whose shape or dtype does not fit the base's.

    Any floating-point dtype fits any other. Shapes must be equal, except that a classifier may have
    another number of labels, its first dimension.
    """
    before, after = config.labels(base.config), config.trained_labels(adapter)
    for name, tensor in replaced.items():
        old = base.tensors[name]
        refusals.require_untied(base, name, old, adapter, added=False, tied=locations.tied)
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
                advice=_advice(old, tensor),
            )


def _advice(old: Tensor, tensor: Tensor) -> str:
    if len(old.shape) == 2 and old.shape[1:] == tensor.shape[1:]:
        size = tensor.shape[0]
        return (
            "if the vocabulary was resized for training, resize the base's too: load it, call "
            f"model.resize_token_embeddings({size}), save it, and merge into the saved model"
        )
    return "is this the base that the adapter was trained on?"


def _usual_dtype(base: Base) -> str:
    """Return the base's most frequent floating-point dtype, by bytes."""
    sizes: Counter[str] = Counter()
    for tensor in base.tensors.values():
        if tensor.dtype in FLOATS:
            sizes[tensor.dtype] += tensor.data.size
    return max(sizes, key=lambda dtype: sizes[dtype])


def _as_safetensors(name: str) -> str:
    """Return the name of a weight file in the output. Pickles become safetensors files."""
    stem = name.removesuffix(".safetensors").removesuffix(".bin")
    old, new = (whole.rpartition(".")[0] for whole in (PICKLE, SAFETENSORS))
    return f"{new if stem == old else stem.replace(f'{old}-', f'{new}-', 1)}.safetensors"
