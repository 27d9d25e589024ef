"""The command line. Commands contain little code, and are imported when they are called.

An error of the library is printed as one line on stderr, or as JSON on stdout with ``--json``, and
the exit status is 1. Wrong usage has exit status 2.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import Any, NoReturn

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
    "store",
    "jobs",
)
"""The commands in the order of the help. Each is ``vbfmt.cli.<name>.command``."""


class _Commands(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"vbfmt.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with their summaries."""
        from vbfmt.cli.command import write_commands

        write_commands(self, ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not ctx.resilient_parsing:
            from vbfmt.cli.suggestions import unknown_command

            raise unknown_command(args, COMMANDS, ctx)
        return super().resolve_command(ctx, args)

    def main(self, *arguments: Any, **options: Any) -> NoReturn:
        """Run the command, print its error if there is one, and exit the process."""
        from vbfmt.cli import process

        try:
            status = self._run(*arguments, **options)
        except click.ClickException as error:
            from vbfmt.cli.failure import report

            status = report(error, sys.argv[1:])
            process.discard_unwritten_output()
        except click.Abort:
            click.echo("interrupted", err=True)
            status = _INTERRUPTED
        sys.exit(status if isinstance(status, int) else 0)

    def _run(self, *arguments: Any, **options: Any) -> Any:
        """Run the command and return its exit status.

        Raises:
            click.ClickException, click.Abort: raised by click, or a `Failure` with an error that
                the user should see.
            Exception: any other error, unchanged.
        """
        try:
            return super().main(*arguments, **{**options, "standalone_mode": False})
        except (click.ClickException, click.Abort):
            raise
        except Exception as error:
            from vbfmt.cli.failure import Failure, is_for_user

            if not is_for_user(error):
                raise
            raise Failure(error) from error


_INTERRUPTED = 130  # what shells report: 128 + SIGINT


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
    Start with:  vbfmt pack CHECKPOINT -o adapter.vblora
    Completion:  eval "$(_VBFMT_COMPLETE=bash_source vbfmt)"
                 (zsh_source, fish_source in those shells)
    Status:      0 done, 1 failed, 2 wrong usage
                 (diff: 0 same, 1 different, 2 trouble)""",
)
@click.version_option(__version__, message="vbfmt %(version)s")
def group() -> None:
    """VB-LoRA adapters as small, verifiable files.

    Pack a PEFT checkpoint, verify the file, convert it to the format that a runtime loads.
    """


def _show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print the library's warnings as notes, and ignore those of other libraries."""
    from vbfmt.cli.show import note
    from vbfmt.cli.translation import in_options
    from vbfmt.errors import VbfmtWarning

    if issubclass(category, VbfmtWarning):
        note(in_options(str(message)))


def main() -> None:
    """Run the command line and end the process."""
    from vbfmt.cli import process

    process.open_closed_streams()
    process.write_completely()
    process.read_any_name()
    process.write_in_any_encoding()
    process.collect_less_often()
    process.clean_up_on_signals()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = _show
        group.main(prog_name="vbfmt")
