"""Find the packed files that a command reads: paths, standard input, or repositories on the Hub."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from vbfmt.cli import process
from vbfmt.cli.arguments import STANDARD_STREAM

if TYPE_CHECKING:
    from vbfmt.adapter import Adapter

_SHOWN_AS = "vbfmt.shown_as"


def path_of(file: str, *, revision: str | None = None) -> str:
    """Return the local path of a packed file. Copy standard input or download the file if
    necessary.

    Args:
        revision: a branch, tag or commit of a repository on the Hub.

    Raises:
        click.UsageError: standard input was read before, or is a terminal.
        SourceError, StorageError: the file cannot be found or fetched.
    """
    if file == STANDARD_STREAM:
        return _from_standard_input()
    if revision is None and os.path.lexists(file):
        return file  # a local path needs no import of the Hub's client
    from vbfmt.converters import sources

    return sources.packed(file, revision=revision)


def adapter_path(file: str) -> str:
    """Return the given path or name; for ``-``, the path of a copy of standard input.

    Raises:
        click.UsageError: standard input was read before, or is a terminal.
    """
    return _from_standard_input() if file == STANDARD_STREAM else file


def adapter_at(file: str, *, revision: str | None = None, banks: Sequence[str] = ()) -> Adapter:
    """Load the adapter from a packed file or a checkpoint.

    Args:
        revision: a branch, tag or commit of a repository on the Hub.
        banks: folders to search for an external bank.

    Raises:
        click.UsageError: standard input was read before, or is a terminal.
        VbfmtError: the adapter cannot be found, fetched or read.
    """
    if file == STANDARD_STREAM or (revision is None and os.path.isfile(file)):
        path = adapter_path(file)
        if file == STANDARD_STREAM or path.endswith(".vblora"):
            from vbfmt.packed import load

            return load(path, banks=banks)
    from vbfmt.converters.operations import inputs

    return inputs.loaded(inputs.located(file, revision=revision), banks=banks)


def shown_as(path: str | None) -> str | None:
    """Return the name by which the user knows a path."""
    context = click.get_current_context(silent=True)
    names: dict[str, str] = context.meta.get(_SHOWN_AS, {}) if context else {}
    return names.get(path, path) if path is not None else None


def _from_standard_input() -> str:
    context = click.get_current_context()
    if _SHOWN_AS in context.meta:
        raise click.UsageError("- (standard input) can be given only once")
    if "stdin" in process.closed:
        raise click.UsageError("- reads standard input, which is closed")
    if sys.stdin.isatty():
        raise click.UsageError("- reads standard input, which is a terminal: pipe a file into it")
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="vbfmt-")
    context.find_root().call_on_close(lambda: shutil.rmtree(folder, ignore_errors=True))
    path = os.path.join(folder, "standard-input.vblora")
    with open(path, "wb") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
    context.meta.setdefault(_SHOWN_AS, {})[path] = "standard input"
    return path
