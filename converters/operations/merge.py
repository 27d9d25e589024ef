"""Merge adapters into a base model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from vbfmt._files import PathLike
from vbfmt._files.banks import Sources
from vbfmt.converters import merge as merging
from vbfmt.converters import sources
from vbfmt.converters.merge import Plan
from vbfmt.converters.operations import inputs
from vbfmt.errors import warn


def merge(
    src: inputs.Given | Sequence[inputs.Given],
    dst: PathLike,
    *,
    base: PathLike | None = None,
    weights: Sequence[float] = (),
    dtype: str | None = None,
    part: str | None = None,
    strict: bool = False,
    revision: str | None = None,
    base_revision: str | None = None,
    banks: Sources | None = None,
    card: bool = False,
    follow_links: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Merge adapters into a base model, and write a folder that loads like a fully trained model.

    Args:
        src: packed files, checkpoints, repositories on the Hugging Face Hub, or adapters. The
            weighted sum of their ΔW is merged.
        dst: the folder to write. Missing parent folders are created.
        base: the base model's folder, or a repository on the Hub. The default is the repository
            that the adapters name; a path that they name is never opened.
        weights: one factor for each adapter's ΔW; by default, all are 1.
        dtype: dtype for all floating-point tensors (float32, bfloat16, float16); by default, the
            base's dtypes are kept.
        part: if the adapters' names match several parts of the base, the prefix of the names of the
            part to change, such as ``text_model.encoder``.
        strict: refuse the base unless it is known to be the one that the adapters name.
        revision: branch, tag or commit of adapters that are repositories.
        base_revision: branch, tag or commit of the base; by default, the revision that the adapters
            name.
        banks: where to search for external banks, as in `vbfmt.load`.
        card: write a model card for the Hub instead of the base's own card.
        follow_links: also follow the base's links that lead out of its folder.
        overwrite: replace the output of an earlier merge.
        dry_run: check everything that can be checked, and write nothing.
        progress: called after each write with the number of written bytes and the total number of
            bytes.

    Returns:
        The plan that was carried out or, with `dry_run`, would be carried out.

    Warns:
        VbfmtWarning: each of the plan's notices.

    Raises:
        VbfmtError: an adapter or the base cannot be read, or they do not fit each other.
        OutputExistsError: `dst` exists, and `overwrite` is not set.
        TargetError, StorageError: the folder cannot be written.
    """
    found = [inputs.located(each, revision=revision) for each in inputs.listed(src)]
    config = base if base is not None and os.path.isdir(base) else None  # for Uni-LoRA
    adapters = [inputs.loaded(each, base=config, banks=banks) for each in found]
    if base is None:
        model = inputs.base_named_by(adapters, sources.model, base_revision)
    else:
        wanted = base_revision or sources.revision_for(os.fspath(base), adapters)
        model = sources.model(os.fspath(base), revision=wanted)
    plan = merging.plan(
        adapters,
        model,
        weights=weights,
        dtype=dtype,
        part=part,
        strict=strict,
        card=card,
        follow_links=follow_links,
    )
    merging.require_output(plan, dst, overwrite=overwrite)
    for notice in plan.notices:
        warn(notice)
    if not dry_run:
        merging.write(
            plan,
            dst,
            overwrite=overwrite,
            progress=None if progress is None else lambda done: progress(done, plan.size),
        )
    return plan
