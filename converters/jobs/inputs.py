"""The inputs of a job: paths, patterns, a list on standard input, what a store holds."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from typing import TextIO

from vbfmt.converters.jobs.tasks import Item, Task, name_of
from vbfmt.errors import ConfigError, MissingSourceError

PathLike = str | os.PathLike[str]


def collected(words: Iterable[str], lines: TextIO | None = None) -> list[str]:
    """Return all inputs that `words` name, each once, in order.

    Args:
        words: paths, patterns (``*``, ``?``, ``[…]``, ``**``), and ``-`` for `lines`.
        lines: one input a line; empty lines are passed over.

    Raises:
        MissingSourceError: a pattern that matches nothing.
        ConfigError: ``-`` without `lines`.
    """
    found: dict[str, None] = {}
    for word in words:
        found.update(dict.fromkeys(_expanded(word, lines)))
    return list(found)


def items(
    sources: Sequence[str], output: PathLike, task: Task, *, overwrite: bool = False
) -> list[Item]:
    """Return an item for each source, with its output in the folder `output`.

    Outputs are named as their sources; for a `task` with a store they are names in it.

    Raises:
        ConfigError: two sources have outputs of one name (upper and lower case are the same).
    """
    ending = ".vblora" if task.operation == "pack" and task.store is None else ""
    made: dict[str, Item] = {}
    for source in sources:
        name = name_of(source) + ending
        clash = made.setdefault(name.lower(), Item(source))
        if clash.source != source:
            raise ConfigError(
                "two inputs would have one output",
                part=name,
                found=f"{clash.source} and {source}",
                advice="rename one, or give them to two jobs",
            )
        path = name if task.store is not None else os.path.join(os.fspath(output), name)
        made[name.lower()] = Item(source, path, overwrite)
    return list(made.values())


def _expanded(word: str, lines: TextIO | None) -> list[str]:
    if word == "-":
        if lines is None:
            raise ConfigError("no list to read", part="-")
        return [line for line in (each.rstrip("\r\n") for each in lines) if line.strip()]
    if os.path.lexists(word) or not glob.has_magic(word):
        return [word]
    found = sorted(glob.glob(word, recursive=True))
    if not found:
        raise MissingSourceError("no file or folder matches", part=word)
    return found
