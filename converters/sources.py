"""What a command reads: a path, or a repository on the Hugging Face Hub that becomes one.

What exists on the disk always wins over a name. ``owner/name`` is a model repository;
``hf://owner/name[@revision][/file]`` always is one, as in huggingface_hub's HfFileSystem, and so
is the address of its page. Only the files that are needed are fetched, into the Hub's own cache;
names from outside become paths by huggingface_hub alone. Its settings hold (HF_HOME,
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace

from vbfmt.adapter import Adapter
from vbfmt.converters._files import checkpoint as checkpoints
from vbfmt.converters.hub.fetch import Choice, Names, fetched
from vbfmt.converters.hub.repository import parse
from vbfmt.errors import SourceError

_PACKED = ".vblora"


def checkpoint(source: str, *, revision: str | None = None) -> str:
    """The local path of a checkpoint to be packed: its weights, pickles only where there are no
    others, and its config.

    Args:
        source: a path, which comes back as it is, or a repository.
        revision: of the repository.

    Raises:
        SourceError: no such repository, revision or file, no permission, or the Hub was not
            reached and the cache does not have it.
    """
    return _path_of(source, checkpoints.needed, revision, "weights of an adapter")


def packed(source: str, *, revision: str | None = None) -> str:
    """The local path of a packed file: the only one in the repository, unless ``hf://`` names it.

    Arguments and errors as `checkpoint`; SourceError also where there are several.
    """
    return _path_of(source, lambda names: _only_packed(names, source), revision, f"{_PACKED} file")


def adapter(source: str, *, revision: str | None = None) -> str:
    """The local path of an adapter: a packed file if the repository holds one, else a checkpoint.

    Arguments and errors as `packed`.
    """

    def choice(names: Names) -> Collection[str]:
        return _only_packed(names, source) or checkpoints.needed(names)

    return _path_of(source, choice, revision, f"{_PACKED} file or weights of an adapter")


def config(source: str, *, revision: str | None = None) -> str:
    """The local path of a base model of which only ``config.json`` is needed (or of the GGUF file
    that ``hf://`` names).

    Arguments and errors as `checkpoint`.
    """

    from vbfmt.converters.merge import base as bases

    def choice(names: Names) -> Collection[str]:
        return [name for name in names if name == bases.CONFIG]

    return _path_of(source, choice, revision, bases.CONFIG)


def model(source: str, *, revision: str | None = None) -> str:
    """The local path of a whole base model: weights in one form, and what belongs to them.

    Arguments and errors as `checkpoint`.
    """
    from vbfmt.converters.merge import base as bases

    path = _path_of(source, bases.needed, revision, "weights of a model")
    repo = parse(source, revision)
    shards = bases.shards_of(path) if repo is not None else set()
    if repo is not None and shards:
        # At the commit that the index was fetched at, whatever its branch may be by now.
        commit = replace(repo, revision=os.path.basename(path))
        fetched(commit, source, lambda names: shards & set(names), "shards")
    return path


def revision_for(base: str, adapters: Sequence[Adapter]) -> str | None:
    """The revision that adapters name of a base, where it is a repository that they name."""
    repo = parse(base)
    if repo is None or repo.revision is not None:
        return None
    named = [each.base_revision for each in adapters if each.base_model == repo.id]
    return next((revision for revision in named if revision), None)


def _only_packed(names: Names, source: str) -> list[str]:
    """The one packed file of a repository, none if there is none.

    Raises:
        SourceError: there are several.
    """
    found = sorted(name for name in names if name.endswith(_PACKED))
    if len(found) > 1:
        raise SourceError(
            "more than one packed adapter in the repository",
            file=source,
            found=", ".join(found[:3]) + (", …" if len(found) > 3 else ""),
            advice=f"say which: hf://OWNER/NAME/{found[0]}",
        )
    return found


def _path_of(
    source: str,
    choice: Choice,
    revision: str | None,
    what: str,
) -> str:
    """`source` itself if it is a path; else the folder in the cache, or the file in it if one is
    named or a packed file is all that was chosen."""
    repo = parse(source, revision)
    if repo is None:
        if revision is not None:
            raise SourceError(
                "a revision is for repositories on the Hub",
                file=source,
                found="a local path" if os.path.lexists(source) else "no such file or folder",
                expected="owner/name",
            )
        return source
    if repo.file is not None:
        folder, _ = fetched(repo, source, _with_configs(repo.file), repo.file)
        return os.path.join(folder, *repo.file.split("/"))
    folder, chosen = fetched(repo, source, choice, what)
    only_packed = len(chosen) == 1 and chosen[0].endswith(_PACKED)
    return os.path.join(folder, *chosen[0].split("/")) if only_packed else folder


def _with_configs(file: str) -> Choice:
    """That file, and configs that lie beside it."""
    folder, slash, _ = file.rpartition("/")
    configs = {folder + slash + name for name in checkpoints.CONFIGS}

    def choice(names: Names) -> Collection[str]:
        return [name for name in names if name == file or name in configs] if file in names else []

    return choice
