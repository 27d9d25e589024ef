"""Print errors of commands as one line to stderr, or as JSON to stdout with ``--json``."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from vbfmt.cli import packed_input, show
from vbfmt.cli.translation import in_options
from vbfmt.errors import VbfmtError, printable

_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))

FIELDS = ("kind", "part", "what", "found", "expected", "advice")
"""The attributes of a `VbfmtError` that are in its JSON, besides ``message`` and ``file``."""


class Failure(click.ClickException):
    """The failure of a command: its error, its exit status, and whether the command has printed
    JSON before it failed."""

    def __init__(self, error: Exception, status: int = 1, *, after_json: bool = False) -> None:
        super().__init__(_message(error))
        self.error = error
        self.status = status
        self.after_json = after_json


def is_for_user(error: Exception) -> bool:
    """Return whether to print an error in one line.

    Other errors are bugs in this program, or mean that the reader of the output has closed it.
    """
    if isinstance(error, BrokenPipeError):
        return False
    return isinstance(error, (VbfmtError, OSError, MemoryError))


def report(error: click.ClickException, arguments: Sequence[str]) -> int:
    """Print an error, as JSON if `arguments` contains ``--json``. Return the exit status.

    If standard output cannot be written, or the command has printed JSON already, the error is one
    line on standard error.
    """
    if "--json" in arguments and not getattr(error, "after_json", False):
        try:
            show.as_json({"error": as_dict(error)})
        except BrokenPipeError:
            pass
        except OSError:
            print_error(error)
    else:
        print_error(error)
    return error.status if isinstance(error, Failure) else error.exit_code


def print_error(error: click.ClickException) -> None:
    """Print an error on standard error."""
    if isinstance(error, Failure):
        lines = [f"error: {error.message}"]
    else:
        text = io.StringIO()
        error.show(file=text)
        lines = text.getvalue().rstrip("\n").split("\n")
    with contextlib.suppress(OSError):  # there is nowhere to print it
        for line in lines:
            # A shell pattern may have put untrusted file names into the arguments.
            click.echo(show.fitted(printable(line), sys.stderr), file=sys.stderr)


def print_each(errors: Sequence[VbfmtError]) -> None:
    """Print errors after which the command did the rest of its work, on standard error."""
    for error in errors:
        print_error(Failure(error))


def as_dict(error: click.ClickException) -> dict[str, Any]:
    """Return an error as JSON fields: ``message``, ``file`` and `FIELDS`, None where unknown."""
    met = error.error if isinstance(error, Failure) else None
    fields = {name: getattr(met, name, None) for name in ("file", *FIELDS)}
    if met is None:
        fields["kind"] = "usage"
    elif isinstance(met, MemoryError):
        fields["kind"] = "memory"
    elif isinstance(met, OSError) and fields["kind"] is None:
        fields.update(kind="storage", file=met.filename, what=met.strerror)
    return {"message": error.format_message(), **fields}


def in_user_terms(error: VbfmtError) -> VbfmtError:
    """Replace parameters and paths in an error by the options and files that the user gave. Return
    it."""
    error.file = packed_input.shown_as(error.file)
    for name in ("what", "part", "found", "expected", "advice"):
        text = getattr(error, name)
        if text is not None:
            setattr(error, name, in_options(text))
    return error


def _is_nowhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _message(error: Exception) -> str:
    if isinstance(error, VbfmtError):
        return str(in_user_terms(error))
    if isinstance(error, OSError):
        if isinstance(error, FileNotFoundError) and not error.filename and _is_nowhere():
            return "the current folder no longer exists"
        if error.errno is not None and error.errno in _FULL and not error.filename:
            # An error of a file names the file.
            return f"cannot write standard output: {os.strerror(error.errno).lower()}"
        where = f" in {error.filename}" if error.filename else ""
        return printable(f"{error.strerror or str(error) or type(error).__name__}{where}")
    return "not enough memory"
