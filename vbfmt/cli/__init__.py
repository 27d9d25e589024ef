"""The command line: thin commands, each imported when it is called.

`main` turns the library's errors into one line on stderr and exit status 1; click's own usage
errors stay at 2.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import Any

import click

from vbfmt import __version__

COMMANDS = (
    "pack",
    "unpack",
    "expand",
    "merge",
    "verify",
    "inspect",
    "plot",
    "estimate",
    "diff",
    "bank",
)
"""In the order in which a user meets them; each is ``vbfmt.cli.<name>.command``."""


class _Commands(click.Group):
    """Commands that are not imported before they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"vbfmt.cli.{cmd_name}").command
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: vbfmt pack CHECKPOINT -o adapter.vblora",
)
@click.version_option(__version__, message="vbfmt %(version)s")
def group() -> None:
    """VB-LoRA adapters as small, verifiable files.

    Pack a PEFT checkpoint, prove the file, turn it into what a runtime takes.
    """


def _show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print the library's warnings as notes; those of other libraries are for developers."""
    from vbfmt.cli.show import note
    from vbfmt.errors import VbfmtWarning

    if issubclass(category, VbfmtWarning):
        note(str(message))


def main() -> None:
    """Run the command line and end the process."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = _show
            group(prog_name="vbfmt")
    except Exception as error:
        # Nothing of the library is imported unless there was something to go wrong.
        from vbfmt.errors import OutputExistsError, VbfmtError, printable

        if isinstance(error, OutputExistsError):
            error.advice = "choose another name or give --force"  # overwrite=True is Python's
        if isinstance(error, VbfmtError):
            message = str(error)
        elif isinstance(error, OSError):
            where = f" in {error.filename}" if error.filename else ""
            message = printable(f"{error.strerror or type(error).__name__}{where}")
        elif isinstance(error, MemoryError):
            message = "not enough memory"
        else:
            raise
        click.echo(f"error: {message}", err=True)
        sys.exit(1)
