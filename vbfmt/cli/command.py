"""The classes of commands and groups.

They add --quiet and --verbose, show examples in the help, and raise errors as `Failure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from vbfmt.cli import show
from vbfmt.errors import ConfigError

WRONG_USAGE = 2


class Command(click.Command):
    """A command of this program.

    Args:
        examples: command lines, as a user would type them.
        error_status: the exit status after an error.
        has_jobs: whether ``vbfmt jobs`` has a command with this name, for many inputs.
    """

    def __init__(
        self,
        *arguments: Any,
        examples: Sequence[str],
        error_status: int = 1,
        has_jobs: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.has_jobs = has_jobs
        self.examples = tuple(examples)
        self.error_status = error_status
        self.params += _verbosity()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        _write_examples(self.examples, formatter)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. If there are too many inputs, suggest the ``vbfmt jobs`` command."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if not (self.has_jobs and "unexpected extra argument" in error.message):
                raise
            more = f"For many inputs: vbfmt jobs {self.name} --help"
            raise click.UsageError(f"{error.message}\n{more}", error.ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            Failure: an error that the user should see.
        """
        from vbfmt.cli.failure import Failure, is_for_user

        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if not is_for_user(error):
                raise
            status = WRONG_USAGE if isinstance(error, ConfigError) else self.error_status
            raise Failure(error, status, after_json=show.has_printed_json(ctx)) from error


class Group(click.Group):
    """A group of commands.

    Args:
        examples: command lines, as a user would type them.
    """

    command_class = Command

    def __init__(self, *arguments: Any, examples: Sequence[str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.examples = tuple(examples)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with their summaries."""
        write_commands(self, ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        _write_examples(self.examples, formatter)


def write_commands(group: click.Group, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the commands of a group with their summaries, which click would cut to one line."""
    commands = [(name, group.get_command(ctx, name)) for name in group.list_commands(ctx)]
    with formatter.section("Commands"):
        formatter.write_dl(
            [(name, found.get_short_help_str(_WHOLE)) for name, found in commands if found]
        )


_WHOLE = 1000
"""Characters; longer than any summary."""


def _write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"  {example}\n")


def _verbosity() -> list[click.Parameter]:
    def chosen(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            if show.verbosity(ctx):
                raise click.UsageError("--quiet and --verbose exclude each other", ctx)
            show.set_verbosity(ctx, -1 if param.name == "quiet" else 1)

    return [
        click.Option(
            [f"-{name[0]}", f"--{name}"],
            is_flag=True,
            expose_value=False,
            callback=chosen,
            help=text,
        )
        for name, text in (
            ("quiet", "Print errors only."),
            ("verbose", "Print all details."),
        )
    ]
