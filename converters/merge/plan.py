"""Plan a merge: decide and check beforehand everything that it will write."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from vbfmt import packed
from vbfmt._files import PathLike, json_file
from vbfmt.adapter import Adapter
from vbfmt.converters.hub import card as cards
from vbfmt.converters.lora import DTYPES, require_dtype
from vbfmt.converters.lowrank import LowRank, combine
from vbfmt.converters.merge import base as bases
from vbfmt.converters.merge import config, record, refusals, revision
from vbfmt.converters.merge.base import Base
from vbfmt.converters.merge.layout import File, Layout, layout
from vbfmt.errors import SourceError


@dataclass(frozen=True)
class Plan:
    """A checked merge that `write` and `tensors` can carry out.

    Attributes:
        factors: the weighted sum of the adapters.
        base: the base model that the sum is added to.
        layout: the tensors of the output, and how the adapters' names were matched to the base's.
        files: the weight files to write.
        texts: content of the other files to write, by name.
        notices: sentences for the user.
        digests: digests of the adapters, in the order in which they were given.
    """

    factors: LowRank
    base: Base
    layout: Layout
    files: tuple[File, ...]
    texts: Mapping[str, bytes]
    notices: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()

    @cached_property
    def copies(self) -> tuple[str, ...]:
        """Names of the base's files that are copied byte for byte."""
        return tuple(name for name in self.base.side_files if name not in self.texts)

    @cached_property
    def size(self) -> int:
        """Number of bytes to write. It is computed from the files when it is first used."""
        copied = sum(os.path.getsize(os.path.join(self.base.path, name)) for name in self.copies)
        written = sum(len(file.header) + file.size for file in self.files)
        return written + copied + sum(map(len, self.texts.values()))


def plan(
    adapters: Adapter | Sequence[Adapter],
    base: PathLike,
    *,
    weights: Sequence[float] = (),
    dtype: str | None = None,
    part: str | None = None,
    strict: bool = False,
    card: bool = False,
    follow_links: bool = False,
) -> Plan:
    """Check that adapters can be merged into a base, and return the plan of the merge.

    Args:
        adapters: one adapter, or several whose weighted sum is merged.
        base: the base model's folder.
        weights: one factor for each adapter's ΔW; by default, all are 1. They do not apply to
            trained biases and heads.
        dtype: dtype for all floating-point tensors of the output (float32, bfloat16, float16); by
            default, the base's dtypes are kept.
        part: if the adapters' names match several parts of the base, the prefix of the names of the
            part to change.
        strict: refuse the base unless it is known to be the one that the adapters name.
        card: write a model card for the Hub instead of the base's own card.
        follow_links: also follow the base's links that lead out of its folder.

    Raises:
        SourceError: the base is quantized or damaged, does not fit the adapters, or already
            contains one of them.
        TargetError: the dtype is unknown; all values of a matrix are too small for it; or there is
            not one weight for each adapter.
        StorageError: a file cannot be read.
    """
    if dtype is not None:
        require_dtype(dtype)
    parts = [adapters] if isinstance(adapters, Adapter) else list(adapters)
    factors = combine.weighted(parts, weights)
    model = bases.read(base, follow_links=follow_links)
    refusals.require_plain_model(model)
    merged = [
        record.Merged(packed.digest(each), weight, each.base_model, each.base_revision)
        for each, weight in factors.parts
    ]
    refusals.require_not_merged_before(model, [each.digest for each in merged])
    notices = [revision.check(each, model.path, strict=strict) for each in parts]
    weights_out = layout(model, factors, DTYPES[dtype] if dtype else None, part=part)
    notices += [*_doubts(factors, model), weights_out.notice]
    settings, changes = config.changed(model.config, factors, dtype, weights_out.added)
    files = [
        replace(file, metadata={**file.metadata, **record.metadata(merged, model)})
        for file in weights_out.files
    ]
    texts = {bases.CONFIG: config.text(settings)} if settings != model.config else {}
    if model.index is not None:
        texts[bases.SAFETENSORS + bases.INDEX] = _index(model.index, files)
    if card:
        known = revision.model_of(model.path) or factors.base_model
        texts[cards.NAME] = cards.merged(factors, known, [each.digest for each in merged])
    names = sorted([*(file.name for file in files), *{*model.side_files, *texts, record.NAME}])
    _require_distinct(names, model)
    texts[record.NAME] = record.text(merged, model, names)
    result = Plan(
        factors=factors,
        base=model,
        layout=weights_out,
        files=tuple(files),
        texts=texts,
        notices=tuple(filter(None, [*notices, *changes])),
        digests=tuple(each.digest for each in merged),
    )
    refusals.require_readable(os.path.join(model.path, name) for name in result.copies)
    return result


def _doubts(factors: combine.Sum, base: Base) -> Iterator[str | None]:
    """Yield notices about the adapters and the base."""
    yield combine.disagreement(factors)
    yield combine.unweighted(factors)
    yield combine.without_effect(factors)
    if not os.path.lexists(os.path.join(base.path, bases.CONFIG)):
        yield f"the base has no {bases.CONFIG}: checks that need it are skipped"


def _index(metadata: Mapping[str, Any], files: Sequence[File]) -> bytes:
    """Return the index of the output's shards; `total_size` is in bytes, as in transformers."""
    counted: dict[str, Any] = {**metadata, "total_size": sum(file.size for file in files)}
    if "total_parameters" in counted:
        counted["total_parameters"] = sum(
            math.prod(item.source.shape) for file in files for item in file.items
        )
    weight_map = {item.name: file.name for file in files for item in file.items}
    content = {"metadata": counted, "weight_map": dict(sorted(weight_map.items()))}
    return json_file.encoded(json.dumps(content, indent=2, ensure_ascii=False))


def _require_distinct(names: Sequence[str], base: Base) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise SourceError("two output files would have the same name", file=base.path, part=twice)
