"""Adapters and a base model → full weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from vbfmt._files.banks import Sources
from vbfmt.converters import merge as merging
from vbfmt.converters import sources
from vbfmt.converters.merge import Plan
from vbfmt.converters.operations import inputs
from vbfmt.errors import warn

PathLike = str | os.PathLike[str]


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
    """Merge adapters into a base model: a folder that loads as if it had been trained in full.

    Args:
        src: packed files, checkpoints, repositories on the Hugging Face Hub, or adapters; several
            are merged as the weighted sum of their ΔW.
        dst: the folder to write. Missing folders above it are made.
        base: the base model's folder, or a repository on the Hub. Left out, it is the repository
            that the adapters name; a path that they name is never opened.
        weights: one for each adapter; 1 if left out.
        dtype: of all tensors (float32, bfloat16, float16); the base's own if left out.
        part: what the names of the part of the base begin with that the adapters change, where they
            fit several and shapes cannot tell, such as ``text_model.encoder``.
        strict: refuse a base that is not known to be the one that the adapters name.
        revision: of adapters that are repositories.
        base_revision: of the base; left out, the one that the adapters name.
        banks: for packed files without a bank, as `vbfmt.load`.
        card: write a model card for the Hub, in place of the base's own.
        follow_links: copy what links of the base outside its folder lead to.
        overwrite: replace the output of an earlier merge.
        dry_run: check everything that can be checked, and write nothing.
        progress: called with the bytes written since the last call, and all bytes.

    Returns:
        what was done, or with `dry_run` what would be.

    Warns:
        VbfmtWarning: each of the plan's notices.

    Raises:
        VbfmtError: an adapter or the base cannot be read, or they do not fit each other.
        OutputExistsError, TargetError, StorageError: the folder cannot be written.
    """
    found = [inputs.located(each, revision=revision) for each in inputs.listed(src)]
    config = base if base is not None and os.path.isdir(base) else None  # for Uni-LoRA
    adapters = [inputs.loaded(each, base=config, banks=banks) for each in found]
    if base is None:
        model = inputs.base_named_by(adapters, sources.model, base_revision)
    else:
        at = base_revision or sources.revision_for(os.fspath(base), adapters)
        model = sources.model(os.fspath(base), revision=at)
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
        merging.write(plan, dst, overwrite=overwrite, progress=_of_all(progress, plan.size))
    return plan


def _of_all(
    progress: Callable[[int, int], None] | None, total: int
) -> Callable[[int], None] | None:
    """The same, called with what was done alone."""
    return None if progress is None else lambda done: progress(done, total)
