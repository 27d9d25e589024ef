"""Errors as a command shows them: one line on stderr, or JSON on stdout where it was asked for."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vbfmt.errors import VbfmtError

FIELDS = ("kind", "part", "what", "found", "expected", "advice")
"""Of a `VbfmtError`, as JSON has them; the rest is ``message`` and ``file``."""


class Failure(click.ClickException):
    """A command that failed: the error that it met, and the exit status."""

    def __init__(self, error: Exception, status: int = 1) -> None:
        super().__init__(_message(error))
        self.error = error
        self.status = status


def explained(error: Exception) -> bool:
    """Whether an error is for the user; anything else is a fault of this program."""
    from vbfmt.errors import VbfmtError

    return isinstance(error, (VbfmtError, OSError, MemoryError))


def report(error: click.ClickException, words: Sequence[str]) -> int:
    """Show an error in the form that the command's words ask for, and return the exit status."""
    from vbfmt.cli import show

    if "--json" in words:
        show.as_json({"error": as_dict(error)})
    elif isinstance(error, Failure):
        click.echo(show.fitted(f"error: {error.message}", sys.stderr), file=sys.stderr)
    else:
        lines = io.StringIO()
        error.show(file=lines)
        for line in lines.getvalue().splitlines():
            click.echo(show.fitted(line, sys.stderr), file=sys.stderr)
    return error.status if isinstance(error, Failure) else error.exit_code


def as_dict(error: click.ClickException) -> dict[str, Any]:
    """The error for a program: ``kind``, ``message`` and, where they are known, the parts of it."""
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
    """Name options and files in an error as the user gave them, and return it."""
    from vbfmt.cli.packed_input import shown_as
    from vbfmt.cli.translation import in_options

    error.file = shown_as(error.file)
    for name in ("what", "part", "found", "expected", "advice"):
        text = getattr(error, name)
        if text is not None:
            setattr(error, name, in_options(text))
    return error


def _message(error: Exception) -> str:
    from vbfmt.errors import VbfmtError, printable

    if isinstance(error, VbfmtError):
        return str(in_user_terms(error))
    if isinstance(error, OSError):
        where = f" in {error.filename}" if error.filename else ""
        return printable(f"{error.strerror or type(error).__name__}{where}")
    return "not enough memory"
