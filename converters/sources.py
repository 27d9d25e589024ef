"""Resolve the inputs of commands, which are paths or repositories on the Hub, to local paths.

``owner/name`` is a model repository, unless a file or folder with that name exists.
``hf://owner/name[@revision][/file]`` is always a repository, as in huggingface_hub's HfFileSystem.
The URL of a repository's page is accepted too. Only the files that are needed are downloaded, into
the Hub's cache. Only huggingface_hub converts names from the Hub to paths. Its environment
variables apply (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

from vbfmt.adapter import Adapter
from vbfmt.converters._files import checkpoint as checkpoints
from vbfmt.converters.hub.fetch import Choice, Names, fetched
from vbfmt.converters.hub.repository import parse
from vbfmt.errors import SourceError, few

_PACKED = ".vblora"


def checkpoint(source: str, *, revision: str | None = None) -> str:
    """Return the local path of a checkpoint to pack.

    From a repository, the weights and the config are downloaded. Pickles are downloaded only if
    there are no other weights.

    Args:
        source: a path, which is returned unchanged, or a repository.
        revision: the repository's branch, tag or commit.

    Raises:
        SourceError: there is no such repository, revision or file, permission is denied, or the Hub
            cannot be reached and the cache lacks the files.
    """
    return _path_of(source, checkpoints.needed, revision, "weights of an adapter")


def packed(source: str, *, revision: str | None = None) -> str:
    """Return the local path of a packed file.

    It is the file that ``hf://`` names, or the only packed file in the repository. Arguments and
    errors are those of `checkpoint`. SourceError is also raised if the repository has several
    packed files.
    """
    return _path_of(source, lambda names: _only_packed(names, source), revision, f"{_PACKED} file")


def adapter(source: str, *, revision: str | None = None) -> str:
    """Return the local path of an adapter: the repository's packed file or, without one, its
    checkpoint.

    Arguments and errors are those of `packed`.
    """
    what = f"{_PACKED} file or weights of an adapter"
    return _path_of(
        source,
        lambda names: _only_packed(names, source) or checkpoints.needed(names),
        revision,
        what,
    )


def config(source: str, *, revision: str | None = None) -> str:
    """Return the local path of a base model if only its ``config.json`` is needed.

    From a repository, only this file is downloaded, or the file that ``hf://`` names, such as a
    GGUF file. Arguments and errors are those of `checkpoint`.
    """
    from vbfmt.converters.merge.base import CONFIG

    return _path_of(source, lambda names: {CONFIG} & set(names), revision, CONFIG)


def model(source: str, *, revision: str | None = None) -> str:
    """Return the local path of a whole base model: its weights in one format, and its other files.

    Arguments and errors are those of `checkpoint`.
    """
    from vbfmt.converters.merge import base as bases

    path = _path_of(source, bases.needed, revision, "weights of a model")
    repo = parse(source, revision)
    shards = bases.shards_of(path) if repo is not None else set()
    if repo is not None and shards:
        # Use the commit of the index, because the branch may have moved meanwhile.
        commit = replace(repo, revision=os.path.basename(path))
        fetched(commit, source, lambda names: shards & set(names), "shards")
    return path


def revision_for(base: str, adapters: Sequence[Adapter]) -> str | None:
    """Return the revision that the adapters name for a base.

    Returns:
        The revision, or None if the base is a path or already has a revision, or if no adapter
        names a revision of it.
    """
    repo = parse(base)
    if repo is None or repo.revision is not None:
        return None
    named = [each.base_revision for each in adapters if each.base_model == repo.id]
    return next((revision for revision in named if revision), None)


def _only_packed(names: Names, source: str) -> list[str]:
    """Return the only packed file of a repository as a list, or an empty list if there is none.

    Raises:
        SourceError: there are several packed files.
    """
    found = sorted(name for name in names if name.endswith(_PACKED))
    if len(found) > 1:
        raise SourceError(
            "more than one packed adapter in the repository",
            file=source,
            found=few(found),
            advice=f"say which: hf://OWNER/NAME/{found[0]}",
        )
    return found


def _path_of(source: str, choice: Choice, revision: str | None, what: str) -> str:
    """Return `source` itself if it is a path. Otherwise, download it and return its local path.

    The local path is the folder in the Hub's cache, or a file in it: the file that `source` names,
    or the packed file if only this file was chosen.
    """
    repo = parse(source, revision)
    if repo is None:
        if revision is not None:
            raise SourceError(
                "a revision was given, but the source is not a repository on the Hub",
                file=source,
                found="a local path" if os.path.lexists(source) else "no such file or folder",
                expected="owner/name",
            )
        return source
    if repo.file is not None:
        folder, _ = fetched(repo, source, partial(_with_configs, repo.file), repo.file)
        return os.path.join(folder, *repo.file.split("/"))
    folder, chosen = fetched(repo, source, choice, what)
    only_packed = len(chosen) == 1 and chosen[0].endswith(_PACKED)
    return os.path.join(folder, *chosen[0].split("/")) if only_packed else folder


def _with_configs(file: str, names: Names) -> Collection[str]:
    """Return a file and the configs beside it, or nothing if there is no such file."""
    folder, slash, _ = file.rpartition("/")
    wanted = {file, *(folder + slash + name for name in checkpoints.CONFIGS)}
    return wanted.intersection(names) if file in names else ()
