"""Whether a base is the one that an adapter names.

A folder does not say which model it holds, unless it lies in the cache of huggingface_hub:
``models--owner--name/snapshots/<commit>``, with branches and tags as files in ``refs``, or is named
as the adapter names it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from vbfmt.adapter import Adapter
from vbfmt.errors import SourceError

_COMMIT = re.compile(r"[0-9a-f]{40}")


def check(adapter: Adapter, base: str, *, strict: bool) -> str | None:
    """A warning where the base is not, or not known to be, what the adapter names.

    Without `strict`, an unknown base is accepted.

    Raises:
        SourceError: the same, with `strict`.
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
    """The model's name on the Hub, if the path contains it."""
    return _identity(base)[0]


def _identity(base: str) -> tuple[str | None, str | None, Path | None]:
    """The model's name, its commit and the folder of its branches, if the path contains it."""
    path = Path(os.path.abspath(base))
    home = path.parent.parent
    if not (
        _COMMIT.fullmatch(path.name)
        and path.parent.name == "snapshots"
        and home.name.startswith("models--")
    ):
        return None, None, None
    return home.name.removeprefix("models--").replace("--", "/", 1), path.name, home / "refs"


def _commit_of(revision: str, refs: Path | None) -> str | None:
    """The commit of a branch or tag. `revision` comes from a file and must not lead elsewhere."""
    parts = revision.split("/")
    if refs is None or not all(parts) or ".." in parts or "." in parts:
        return None
    try:
        return refs.joinpath(*parts).read_text(errors="replace").strip()
    except (OSError, ValueError):
        return None
