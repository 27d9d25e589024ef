"""Collect the inputs of a job: paths, patterns, and a list on standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from vbfmt._files import PathLike
from vbfmt.converters._files.checkpoint import WEIGHTS
from vbfmt.converters.jobs.tasks import Item, Task, name_of
from vbfmt.errors import ConfigError, MissingSourceError


def collected(words: Iterable[str], lines: TextIO | None = None) -> list[str]:
    """Return all inputs that `words` name, in order.

    Each path is returned only once, as it was first written.

    Args:
        words: paths, patterns (``*``, ``?``, ``[…]``, ``**``), and ``-``, which stands for `lines`.
        lines: a stream with one input on each line; empty lines are ignored.

    Raises:
        MissingSourceError: a pattern matches nothing.
        ConfigError: ``-`` is given without `lines`.
    """
    found: dict[str, str] = {}
    for word in words:
        for each in _expanded(word, lines):
            found.setdefault(_whole(each), each)
    return list(found.values())


def items(
    sources: Sequence[str],
    output: PathLike,
    task: Task,
    *,
    overwrite: bool = False,
    names: Mapping[str, str] | None = None,
) -> list[Item]:
    """Return an item for each source. Its output is named after the source.

    A packed file that is the output of another source is not an input of ``pack``: an earlier run
    with the same pattern has written it.

    Args:
        sources: paths or repositories.
        output: the folder for the outputs. It is not used if the `task` has a store, because the
            outputs are then names in the store.
        task: the operation.
        overwrite: replace existing outputs.
        names: source → name of its output, for outputs that are not named after their source.

    Raises:
        ConfigError: two outputs have the same name, ignoring case, or a source is the root of the
            file system.
    """
    ending = ".vblora" if task.operation == "pack" and task.store is None else ""
    made: dict[str, Item] = {}
    for source in sources:
        name = (names or {}).get(source, name_of(source))
        if not name:
            raise ConfigError("an input without a name for its output", part=source)
        name += ending
        path = name if task.store is not None else os.path.join(os.fspath(output), name)
        made[source] = Item(source, path, overwrite)
    result = list(made.values())
    if ending:
        result = _without_outputs(result)
    require_distinct(result)
    return result


def is_folder_of_packed(path: str) -> bool:
    """Return whether a path is a folder with packed files that is not a checkpoint itself."""
    try:
        names = os.listdir(path)
    except OSError:  # not a folder, or one that cannot be read
        return False
    return any(name.endswith(".vblora") for name in names) and not set(names) & set(WEIGHTS)


def require_distinct(items: Iterable[Item]) -> None:
    """Check that no two items have the same output, ignoring case.

    Raises:
        ConfigError: two items have the same output.
    """
    sources: dict[str, str] = {}
    for item in items:
        other = sources.setdefault(item.output.lower(), item.source)
        if other != item.source:
            is_output = _whole(item.output) in (_whole(other), _whole(item.source))
            raise ConfigError(
                "two inputs would have the same output",
                part=os.path.basename(item.output),
                found=f"{other} and {item.source}",
                advice="one is an output: choose an output folder without inputs"
                if is_output
                else "rename one, or run two jobs with different output folders",
            )


def _without_outputs(items: list[Item]) -> list[Item]:
    """Return the items without those whose source is the output of another item."""
    packed = (item for item in items if item.source.endswith(".vblora"))
    own = {item.source for item in packed if _whole(item.source) == _whole(item.output)}
    others = {item.output for item in items if item.source not in own}
    return [item for item in items if item.source not in own or item.output not in others]


def _whole(source: str) -> str:
    """Return a path whose folder contains no links, so that ``a``, ``./a`` and ``a/`` are the same.

    If the path itself is a link, it is not followed, because its output is named after the link. A
    source that is not a path is returned unchanged.
    """
    if not os.path.lexists(source):
        return source
    folder, leaf = os.path.split(source.rstrip(os.sep))
    if leaf in ("", os.curdir, os.pardir):
        return os.path.realpath(source)
    return os.path.join(os.path.realpath(folder), leaf)


def _expanded(word: str, lines: TextIO | None) -> list[str]:
    if word == "-":
        if lines is None:
            raise ConfigError("`-` is given, but there is no list to read", part="-")
        return [line for line in (each.rstrip("\r\n") for each in lines) if line.strip()]
    if os.path.lexists(word) or not glob.has_magic(word):
        return [word]
    found = sorted(glob.glob(word, recursive=True))
    if not found:
        raise MissingSourceError("no file or folder matches", part=word)
    return found
