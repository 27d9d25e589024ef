"""Read the inputs of an operation: packed files, checkpoints, repositories on the Hub or
adapters."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from vbfmt import packed
from vbfmt._files import PathLike
from vbfmt._files.banks import Sources
from vbfmt._format.container import MAGIC
from vbfmt.adapter import Adapter
from vbfmt.converters import open_source, read, sources
from vbfmt.converters._files import checkpoint as checkpoints
from vbfmt.converters.hub.repository import is_id, is_model_name
from vbfmt.errors import ConfigError, MissingExtraError, SourceError, warn

Given = PathLike | Adapter
"""A path, a repository's name, or an adapter in memory."""


def listed(given: Given | Sequence[Given]) -> list[Given]:
    """Return one or several inputs as a list."""
    return [given] if isinstance(given, (str, os.PathLike, Adapter)) else list(given)


def located(given: Given, *, revision: str | None = None) -> Given:
    """Return the local path of an input. An adapter in memory is returned unchanged.

    Raises:
        SourceError: there is no such repository, revision or file.
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
    """Return the adapter at a local path. An adapter in memory is returned unchanged.

    Args:
        given: the path of a packed file or a checkpoint, or an adapter.
        topk, layout, base: for checkpoints, as in `vbfmt.converters.read`.
        banks: where to search for external banks, as in `vbfmt.load`.

    Raises:
        VbfmtError: the adapter cannot be read.
    """
    if isinstance(given, Adapter):
        return given
    if is_checkpoint(given):
        return read(given, topk=topk, layout=layout, base=base)
    return packed.load(given, banks=banks, mmap=False)  # a merge may use it for hours


def require_checkpoint(found: Sequence[Given], **options: object) -> None:
    """Check that options which only apply to checkpoints are given for at least one checkpoint.

    Raises:
        ConfigError: an option is not None, and there is no checkpoint.
    """
    given = [name for name, value in options.items() if value is not None]
    if not given or any(not isinstance(each, Adapter) and is_checkpoint(each) for each in found):
        return
    raise ConfigError(
        "for checkpoints only",
        part=f"`{given[0]}`",
        found=", ".join("an adapter" if isinstance(f, Adapter) else str(f) for f in found[:3]),
        expected="a checkpoint",
        advice="leave it out",
    )


def files_of(given: Given) -> list[PathLike]:
    """Return the files that are read for an input at a local path, or none for an adapter in
    memory."""
    if isinstance(given, Adapter):
        return []
    return list(open_source(given).files) if is_checkpoint(given) else [given]


def is_checkpoint(path: PathLike) -> bool:
    """Return whether a path is read as a checkpoint, not as a packed file.

    Folders are read as checkpoints. So are files that have the suffix of a weights file and do not
    begin with the magic of a packed file.
    """
    named = os.fspath(path).endswith(checkpoints.SUFFIXES)
    return os.path.isdir(path) or (named and not _begins_as_packed(path))


def _begins_as_packed(path: PathLike) -> bool:
    try:
        with open(path, "rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:  # the caller reads the file next, and reports the error
        return False


def configs(base: PathLike | None) -> list[PathLike]:
    """Return the paths of a base model that are read if only its config is needed."""
    return [] if base is None else [base, os.path.join(base, "config.json")]


def base_named_by(
    adapters: Sequence[Adapter],
    locate: Callable[..., str],
    revision: str | None = None,
) -> str:
    """Return the local path of the repository that adapters name as their base model.

    Args:
        adapters: the adapters.
        locate: the function that downloads the repository: `sources.model` or `sources.config`.
        revision: the repository's branch, tag or commit; by default, the revision that the adapters
            name.

    Warns:
        VbfmtWarning: the name of the base model.

    Raises:
        SourceError: the adapters name no repository or several, or the repository cannot be
            downloaded.
        MissingExtraError: huggingface_hub is not installed.
    """
    named = list(dict.fromkeys(adapter.base_model for adapter in adapters))
    # A name from a file must never be opened as a path.
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
    except (SourceError, MissingExtraError) as error:
        install = f"{error.advice}, or " if isinstance(error, MissingExtraError) else ""
        error.advice = f"{install}give the base: `base=PATH`"
        raise
    warn(f"the base model is the one that the adapter names: {named[0]}")
    return path


def is_local_path(name: str) -> bool:
    """Return whether a base model's name is a path on the machine that trained the adapter."""
    return not is_model_name(name) and ("/" in name or "\\" in name or name.startswith("~"))
