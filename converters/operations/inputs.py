"""What an operation reads: adapters, packed or not, from a path or a repository on the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from vbfmt import packed
from vbfmt._files.banks import Sources
from vbfmt._format.container import MAGIC
from vbfmt.adapter import Adapter
from vbfmt.converters import open_source, read, sources
from vbfmt.converters._files import checkpoint as checkpoints
from vbfmt.converters.hub.repository import is_id, is_model_name
from vbfmt.errors import SourceError, warn

PathLike = str | os.PathLike[str]
Given = PathLike | Adapter
"""A path or a repository's name, or the adapter itself."""


def listed(given: Given | Sequence[Given]) -> list[Given]:
    """One input or several, as a list."""
    return [given] if isinstance(given, (str, os.PathLike, Adapter)) else list(given)


def located(given: Given, *, revision: str | None = None) -> Given:
    """The local path of an adapter, packed or a checkpoint; adapters themselves come back.

    Raises:
        SourceError: no such repository, revision or file.
    """
    if isinstance(given, Adapter):
        return given
    return sources.adapter(os.fspath(given), revision=revision)


def loaded(
    given: Given,
    *,
    topk: int | None = None,
    layout: str | None = None,
    base: PathLike | None = None,
    banks: Sources | None = None,
) -> Adapter:
    """The adapter at a local path.

    Args:
        banks: for packed files without a bank, as `vbfmt.load`.
        topk, layout, base: for checkpoints, as `vbfmt.converters.read`.

    Raises:
        VbfmtError: it cannot be read.
    """
    if isinstance(given, Adapter):
        return given
    if is_checkpoint(given):
        return read(given, topk=topk, layout=layout, base=base)
    return packed.load(given, banks=banks)


def files_of(given: Given) -> list[PathLike]:
    """The files that are read of an input at a local path."""
    if isinstance(given, Adapter):
        return []
    return list(open_source(given).files) if is_checkpoint(given) else [given]


def is_checkpoint(path: PathLike) -> bool:
    """Whether a path is read as a checkpoint: a folder, or a file that is named as weights are and
    does not begin as a packed file."""
    named = os.fspath(path).endswith(checkpoints.SUFFIXES)
    return os.path.isdir(path) or (named and not _begins_as_packed(path))


def _begins_as_packed(path: PathLike) -> bool:
    try:
        with open(path, "rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:  # reading it will say why
        return False


def configs(base: PathLike | None) -> list[PathLike]:
    """The paths that are read of a base model of which only the config matters."""
    return [] if base is None else [base, os.path.join(base, "config.json")]


def base_named_by(
    adapters: Sequence[Adapter],
    locate: Callable[..., str],
    revision: str | None = None,
) -> str:
    """The local path of the repository that adapters name as their base model.

    Args:
        locate: finds it: `sources.model` or `sources.config`.
        revision: of it; left out, the one that the adapters name.

    Warns:
        VbfmtWarning: which one it is.

    Raises:
        SourceError: they name none or several, or it cannot be had.
    """
    named = list(dict.fromkeys(adapter.base_model for adapter in adapters))
    # A name from a file is never opened as a path.
    if len(named) != 1 or named[0] is None or not is_id(named[0]):
        raise SourceError(
            "the base model is not known",
            found=", ".join(map(repr, filter(None, named))) or "no base model named in the adapter",
            expected="one repository on the Hub that all adapters name",
            advice="give the base: `base=PATH`",
        )
    source = f"hf://{named[0]}"
    try:
        path = locate(source, revision=revision or sources.revision_for(source, adapters))
    except SourceError as error:
        error.advice = "give the base: `base=PATH`"
        raise
    warn(f"the base model is the one that the adapter names: {named[0]}")
    return path


def is_local_path(name: str) -> bool:
    """Whether a base model's name is a path of the machine that trained the adapter."""
    return not is_model_name(name) and ("/" in name or "\\" in name or name.startswith("~"))
