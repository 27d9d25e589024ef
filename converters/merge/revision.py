"""Check that a base is the one that an adapter names.

Only its path shows which model a folder contains. In the cache of huggingface_hub, the path is
``models--owner--name/snapshots/<commit>``, and a folder ``refs`` beside ``snapshots`` has a file
for each branch and tag. Elsewhere, the adapter may name the folder itself as its base.
"""

from __future__ import annotations

import os
from pathlib import Path

from vbfmt.adapter import Adapter
from vbfmt.converters.merge.paths import cached_repository
from vbfmt.errors import SourceError


def check(adapter: Adapter, base: str, *, strict: bool) -> str | None:
    """Return a warning if the base is known not to be the one that the adapter names, else None.

    Args:
        adapter: the adapter. Its `base_model` and `base_revision` are compared.
        base: the path of the base's folder.
        strict: raise an error instead, and also if it is unknown whether the base is the right one.

    Raises:
        SourceError: `strict` is set, and the base is not known to be the named one.
    """
    model, commit, refs = _identity(base)
    if model is None and adapter.base_model in (base, os.path.abspath(base)):
        model = adapter.base_model
    wanted = adapter.base_revision
    other = wanted is not None and commit not in (None, wanted, _commit_of(wanted, refs))
    if model is not None and adapter.base_model not in (None, model):
        found, expected = model, adapter.base_model
    elif other:
        found, expected = f"revision {commit}", f"revision {wanted}"
    elif strict and wanted is not None and commit is None:
        found, expected = "a folder whose revision is unknown", f"revision {wanted}"
    elif strict and adapter.base_model is not None and model is None:
        found, expected = "a folder whose model is unknown", adapter.base_model
    else:
        return None
    error = SourceError(
        "not the base that the adapter names", file=base, found=found, expected=expected
    )
    if strict:
        raise error
    return str(error)


def model_of(base: str) -> str | None:
    """Return the model's name on the Hub if the path contains it, else None."""
    return _identity(base)[0]


def _identity(base: str) -> tuple[str | None, str | None, Path | None]:
    """Return a model's name, its commit and the path of its ``refs``.

    They are None if the path is not in the cache of huggingface_hub.
    """
    path = os.path.abspath(base)
    home = cached_repository(path)
    if home is None:
        return None, None, None
    name = os.path.basename(home).removeprefix("models--").replace("--", "/", 1)
    return name, os.path.basename(path), Path(home, "refs")


def _commit_of(revision: str, refs: Path | None) -> str | None:
    """Return the commit of a branch or tag, or None if it is unknown.

    `revision` comes from an untrusted file, so it must not refer to a path outside `refs`.
    """
    parts = revision.split("/")
    if refs is None or not all(parts) or ".." in parts or "." in parts:
        return None
    try:
        return refs.joinpath(*parts).read_text(errors="replace").strip()
    except (OSError, ValueError):
        return None
